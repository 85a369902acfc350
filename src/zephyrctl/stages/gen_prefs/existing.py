"""Completions that exist already: they are read, their old ratings are forgotten, and nothing is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from zephyrctl.asking.estimate import Range, size, text_tokens
from zephyrctl.asking.prompts import Seed
from zephyrctl.errors import IntegrityError
from zephyrctl.records import Completion, FeedbackRow, PromptRow, Split, row_seed, split_of
from zephyrctl.stages.gen_prefs.answered import Answered, AskAll

if TYPE_CHECKING:
    from zephyrctl.artifacts.adopt import Source
    from zephyrctl.artifacts.manifest import InputRef
    from zephyrctl.asking.seats import World
    from zephyrctl.asking.sketch import Sketch
    from zephyrctl.providers.base import AnyProvider


@dataclass(frozen=True)
class Given(Seed):
    """A prompt that brings its completions along, without ratings."""

    completions: tuple[Completion, ...] = ()


@dataclass
class GivenPrompts:
    """The prompts of rows of kind `feedback`, with their completions: not read yet, all of them or the first `rows`.

    `rejects` holds the bad rows that were left out, once `load` has run.
    """

    source: Source
    rows: int | None
    rejects: list[dict[str, Any]] = field(default_factory=list)
    most: int = 0
    """The mean number of completions of a prompt, rounded up, once `load` has run."""

    @property
    def inputs(self) -> list[InputRef]:
        """What is read, for the step key."""
        return self.source.inputs("completions")

    @property
    def world(self) -> World:
        """The world that the rows belong to."""
        return self.source.world

    @property
    def named(self) -> str:
        """What the rows are taken from, in words."""
        return ", ".join(item.ref for item in self.inputs)

    @property
    def shares(self) -> list[dict[str, Any]]:
        """What the source gave where only a share of it is taken, once `load` has run."""
        return self.source.shares()

    def load(self, *, seed: int, test_fraction: float) -> list[Seed]:
        """The prompts in the order in which they are used, as `Seeds.load` orders them: more rows contain fewer.

        A row keeps the split it has; others get theirs by hash of the prompt.
        """
        found = ((where, split, _row(where, row)) for where, split, row in self.source.rows())
        if self.source.in_order:
            taken = list(islice(found, self.rows))
        else:
            ranked = sorted(found, key=lambda x: (row_seed(seed, "order", x[2].prompt_id), x[0]))
            taken = ranked[: self.rows]
        self.rejects = list(self.source.rejects)
        held = sum(len(row.completions) for _, _, row in taken)
        self.most = -(-held // max(1, len(taken)))
        return [_given(*one, test_fraction, position) for position, one in enumerate(taken)]


class Existing:
    """An answerer that asks nobody."""

    def __init__(self, prompts: GivenPrompts) -> None:
        self._prompts = prompts

    @property
    def named(self) -> str:
        """Where the completions come from."""
        return f"the completions of {self._prompts.named}"

    @property
    def most(self) -> int:
        """How many completions a prompt has, on average and rounded up."""
        return self._prompts.most

    def inputs(self) -> list[InputRef]:
        """Nothing beyond the rows that the prompts come from."""
        return []

    def providers(self) -> list[AnyProvider]:
        """Nobody."""
        return []

    def draw(self, sketch: Sketch, items: Sequence[Seed]) -> Range:
        """No calls; the tokens of the completions that are there."""
        return sum((text_tokens(size(c.text), 0) for item in items for c in _completions(item)), Range())

    def answer(self, items: Sequence[Seed], ask: AskAll) -> list[Answered]:
        """The completions of each prompt; one without a word is left out."""
        answered = []
        for item in items:
            found = Answered(item)
            for completion in _completions(item):
                if completion.text.strip():
                    found.kept.append(completion)
                else:
                    found.leave_out(completion.model, "empty", "nothing but white space")
            answered.append(found)
        return answered

    def close(self) -> None:
        """Nothing is held."""


def _completions(item: Seed) -> Sequence[Completion]:
    assert isinstance(item, Given)
    return item.completions


def _row(where: str, row: object) -> FeedbackRow:
    if not isinstance(row, FeedbackRow):
        raise IntegrityError(f"{where}: a {type(row).__name__} where a prompt with completions was expected")
    return row


def _given(where: str, split: str | None, row: FeedbackRow, test_fraction: float, position: int) -> Given:
    home: Split = "test" if split == "test" else "train"
    if split is None:
        home = split_of(row.prompt_id, test_fraction)
    prompt = PromptRow(prompt_id=row.prompt_id, prompt=row.prompt, source=row.source)
    return Given(where, home, prompt, position, tuple(map(_unrated, row.completions)))


def _unrated(completion: Completion) -> Completion:
    """The completion as it was before anybody rated it; its id stays what ratings are bound to."""
    nothing: dict[str, Any] = {"ratings": [], "overall": None, "critique": None, "opinions": []}
    return completion.model_copy(update=nothing)
