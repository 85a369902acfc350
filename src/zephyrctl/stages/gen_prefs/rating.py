"""From prompts to feedback rows, a chunk at a time: completions first, then ratings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from zephyrctl.asking.prompts import Seed
from zephyrctl.records import Completion, FeedbackRow
from zephyrctl.stages.gen_prefs.answered import Answered, AskAll, Outcome, TooFew, Unfinished
from zephyrctl.stages.gen_prefs.tally import Tally

if TYPE_CHECKING:
    from zephyrctl.artifacts.manifest import InputRef
    from zephyrctl.asking.estimate import Range
    from zephyrctl.asking.seats import World
    from zephyrctl.asking.sketch import Sketch
    from zephyrctl.providers.base import AnyProvider


class Answerer(Protocol):
    """Where completions come from: a pool of models that is asked, or rows that hold them already."""

    @property
    def named(self) -> str:
        """It, in words."""
        ...

    @property
    def most(self) -> int:
        """How many completions a prompt has at most, or close to it."""
        ...

    def inputs(self) -> list[InputRef]:
        """What of it enters the step key."""
        ...

    def providers(self) -> list[AnyProvider]:
        """Whom it asks."""
        ...

    def draw(self, sketch: Sketch, items: Sequence[Seed]) -> Range:
        """Sketches its calls; the tokens of all completions."""
        ...

    def answer(self, items: Sequence[Seed], ask: AskAll) -> list[Answered]:
        """The completions of each prompt, in the same order. Runs in several threads at once."""
        ...

    def close(self) -> None:
        """Lets go of what it holds."""
        ...


class Rater(Protocol):
    """Who rates completions: a judge, a reward model, a function of the user's."""

    label: str
    """What stands in the rows as `judge`."""

    @property
    def world(self) -> World:
        """Whether its ratings belong to the sandbox or to the real world."""
        ...

    def inputs(self) -> list[InputRef]:
        """What of it enters the step key."""
        ...

    def templates(self) -> dict[str, str]:
        """The hashes of its prompts, by name."""
        ...

    def providers(self) -> list[AnyProvider]:
        """Whom it asks; empty where it computes on this machine."""
        ...

    def draw(self, sketch: Sketch, prompts: int, asked: Range, texts: Range, pool: int) -> None:
        """Sketches its calls for `prompts` prompts of `pool` completions each; `asked` and `texts` are the tokens
        of all prompts and of all completions."""
        ...

    def rate(self, answered: Sequence[Answered], ask: AskAll, tally: Tally) -> list[list[Completion] | None]:
        """The completions of each prompt with their ratings, in the same order; None where a call is not paid for.

        Runs in several threads at once, so it changes nothing that they share but `tally`, which is the caller's own.
        """
        ...

    def close(self) -> None:
        """Lets go of what it holds."""
        ...


def rate_chunk(
    items: Sequence[Seed], answerer: Answerer, rater: Rater, ask: AskAll, tally: Tally
) -> list[Outcome]:
    """A feedback row for each prompt, in the same order, or why there is none. Prompts that are not paid for to
    the end are counted nowhere."""
    answered = answerer.answer(items, ask)
    ready = [a for a in answered if len(a.kept) >= 2 and not a.unpaid]
    rated = dict(zip(map(id, ready), rater.rate(ready, ask, tally), strict=True))
    return [_outcome(a, rated.get(id(a)), rater, tally) for a in answered]


def _outcome(answered: Answered, rated: list[Completion] | None, rater: Rater, tally: Tally) -> Outcome:
    few = len(answered.kept) < 2
    if answered.unpaid or (rated is None and not few):
        return Unfinished(answered.item)
    tally.completions_asked += len(answered.kept) + answered.reasons.total()
    tally.completions_kept += len(answered.kept)
    tally.left_out.update(answered.reasons)
    tally.principles.update(c.principle for c in answered.kept if c.principle is not None)
    if few or rated is None:
        return TooFew(answered.item, "; ".join(answered.lost) or "there is one completion")
    row = answered.item.row
    return FeedbackRow(
        prompt_id=row.prompt_id, prompt=row.prompt, completions=rated, judge=rater.label, source=row.source
    )
