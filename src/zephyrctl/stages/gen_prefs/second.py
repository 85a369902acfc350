"""Second opinions: another judge for the rows where it pays, the same judge once more for a sample of prompts.

Both are kept beside the first ratings (`opinions`) and never change them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zephyrctl.asking.estimate import Range
from zephyrctl.asking.seats import Seat, check_keys, joint_world, take_seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.errors import UsageError
from zephyrctl.providers.base import Answer, Ask, Failure
from zephyrctl.records import Completion, SecondOpinion, row_seed
from zephyrctl.stages.gen_prefs.answered import Answered, AskAll
from zephyrctl.stages.gen_prefs.judging import JudgeRater
from zephyrctl.stages.gen_prefs.tally import Tally
from zephyrctl.stages.gen_prefs.when import When, parse_when

if TYPE_CHECKING:
    from zephyrctl.artifacts.manifest import InputRef
    from zephyrctl.artifacts.step import Work
    from zephyrctl.asking.seats import World
    from zephyrctl.providers.base import AnyProvider
    from zephyrctl.providers.site import Site
    from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
    from zephyrctl.stages.gen_prefs.rating import Rater

RETEST = "retest"
CLOSE = 0.3
"""The share of rows that an estimate expects to be close or in conflict, before any is rated."""


def open_second(rater: Rater, config: GenPrefsConfig, work: Work, site: Site) -> Rater:
    """`rater`, followed by what the settings want besides: a second judge, a retest; `rater` itself where they want
    neither.

    Raises UsageError where the first rater is no language model, for a condition that cannot be read or never holds
    with these settings or has no second judge, and for one that is the first; AuthError, RefNotFound, MissingExtra.
    """
    if config.second_judge is None and config.when != type(config).model_fields["when"].default:
        raise UsageError(
            f"when={config.when} says which rows a second judge is asked about, and there is none",
            hint="--second-judge MODEL",
        )
    if config.second_judge is None and not config.retest:
        return rater
    if not isinstance(rater, JudgeRater):
        raise UsageError(
            f"{rater.label} is no language model: it has no second opinion, and says the same when asked again",
            hint="leave second_judge and retest out, or rate with --scorer llm",
        )
    rounds: list[Round] = []
    if config.second_judge is not None:
        when = parse_when(config.when)
        if when.conflict and config.judge_mode != "both":
            raise UsageError(
                f"when: with judge_mode={config.judge_mode} aspects and overall score cannot be in conflict",
                hint="--judge-mode both, or --set when='margin<1'",
            )
        [spec] = check_keys([config.second_judge], site)
        seat = take_seat(work.store, spec, site)
        if seat.label == rater.label:
            raise UsageError(
                f"the second judge is the first one, {rater.label}",
                hint="--set retest=0.02 asks the same judge again",
            )
        rounds.append(ByAnother(JudgeRater(seat, rater.settings), when))
    if config.retest:
        rounds.append(Retest(JudgeRater(rater.teacher, rater.settings, draw=1), config.retest, config.seed))
    return SecondRater(rater, rounds)


@dataclass(frozen=True)
class ByAnother:
    """Another judge, for the rows that a condition picks out."""

    judge: JudgeRater
    when: When
    name: str = "second"

    @property
    def share(self) -> float:
        """The share of rows that it is expected to get."""
        return 1.0 if self.when.always else CLOSE

    def most(self, prompts: int) -> int:
        """How many of so many prompts it may get: all of them."""
        return prompts

    def why(self, prompt_id: str, rated: Sequence[Completion]) -> str | None:
        """Why it is asked about a prompt; None = it is not."""
        return self.when.reason(rated)


@dataclass(frozen=True)
class Retest:
    """The first judge with another draw, for a share of prompts taken by hash."""

    judge: JudgeRater
    share: float
    seed: int
    name: str = "retest"

    def most(self, prompts: int) -> int:
        """How many of so many prompts it may get: six standard deviations above the share, for prompts are taken by
        hash."""
        expected = prompts * self.share
        return min(prompts, math.ceil(expected + 6 * math.sqrt(expected) + 6))

    def why(self, prompt_id: str, rated: Sequence[Completion]) -> str | None:
        """`retest`, for the share of prompts; None for the others."""
        return RETEST if row_seed(self.seed, prompt_id, RETEST) < self.share * 2**63 else None


Round = ByAnother | Retest


class SecondRater:
    """The first judge, then one round after the other, each over its own rows only."""

    def __init__(self, first: JudgeRater, rounds: Sequence[Round]) -> None:
        self.label = first.label
        self._first = first
        self._rounds = tuple(rounds)
        self._judges = (first, *(one.judge for one in rounds))

    @property
    def world(self) -> World:
        """The sandbox as soon as one of the judges belongs to it."""
        return joint_world(judge.teacher.world for judge in self._judges)

    def inputs(self) -> list[InputRef]:
        """The weights of the judges that are models of ours."""
        others = [judge.teacher for judge in self._judges if judge.teacher is not self._first.teacher]
        return [*self._first.inputs(), *(ref for seat in others for ref in seat.inputs("second judge"))]

    def templates(self) -> dict[str, str]:
        """The hashes of the rubrics, which all judges share."""
        return self._first.templates()

    def providers(self) -> list[AnyProvider]:
        """Whom it asks, the first judge first."""
        return [provider for judge in self._judges for provider in judge.providers()]

    def draw(self, sketch: Sketch, prompts: int, asked: Range, texts: Range, pool: int) -> None:
        """The first judge's calls, then those of each round: the stated share of them is likely."""
        self._first.draw(sketch, prompts, asked, texts, pool)
        for one in self._rounds:
            whole = Sketch(sketch.batch, sketch.scale)
            one.judge.draw(whole, prompts, asked, texts, pool)
            sketch.parts.extend(
                replace(
                    part,
                    role=f"{one.name} judge" if isinstance(one, ByAnother) else part.role,
                    purpose=f"{part.purpose} {one.name}",
                    calls=math.ceil(part.calls * one.share),
                    most=math.ceil(part.most * one.most(prompts) / max(1, prompts)),
                )
                for part in whole.parts
            )

    def rate(self, answered: Sequence[Answered], ask: AskAll, tally: Tally) -> list[list[Completion] | None]:
        """The first ratings, with the opinions of all rounds; None where a call of either is not paid for.

        Only the first ratings are counted in `tally`.
        """
        replayed = _remembering(ask)
        counted = Tally()
        made = self._first.rate(answered, replayed, counted)
        for one in self._rounds:
            self._add(one, answered, made, ask)
        paid = [a for a, rated in zip(answered, made, strict=True) if rated is not None]
        if len(paid) < len(answered):  # what is not paid for to the end is counted nowhere
            counted = Tally()
            self._first.rate(paid, replayed, counted)
        tally.add(counted)
        return made

    def _add(
        self, one: Round, answered: Sequence[Answered], made: list[list[Completion] | None], ask: AskAll
    ) -> None:
        """Puts the opinions of a round into `made`."""
        picked = {
            i: why
            for i, rated in enumerate(made)
            if rated is not None and (why := one.why(answered[i].item.row.prompt_id, rated)) is not None
        }
        if not picked:
            return
        again = one.judge.rate([answered[i] for i in picked], _renamed(ask, one.name), Tally())
        for (i, why), rated in zip(picked.items(), again, strict=True):
            first = made[i]
            assert first is not None
            made[i] = None if rated is None else _with_opinions(first, rated, one.judge.label, why)

    def close(self) -> None:
        """Lets go of all judges."""
        for seat in {id(judge.teacher): judge.teacher for judge in self._judges}.values():
            seat.close()


def _with_opinions(
    first: Sequence[Completion], second: Sequence[Completion], judge: str, why: str
) -> list[Completion]:
    """The first completions, each with what the second round says of it, by completion_id."""
    found = {c.completion_id: c for c in second}
    made = []
    for completion in first:
        said = found[completion.completion_id]
        opinion = SecondOpinion(
            judge=judge, why=why, ratings=said.ratings, overall=said.overall, critique=said.critique
        )
        made.append(completion.model_copy(update={"opinions": [*completion.opinions, opinion]}))
    return made


def _renamed(ask: AskAll, name: str) -> AskAll:
    """Asks under purposes of their own (`aspect second`), so that the ledger tells the money apart."""

    def asked(asks: Sequence[tuple[Seat, Ask]], task: str) -> Sequence[Answer | Failure]:
        named = [(seat, replace(one, purpose=f"{one.purpose} {name}")) for seat, one in asks]
        return ask(named, f"{task} ({name})")

    return asked


def _remembering(ask: AskAll) -> AskAll:
    """Asks each request once; asked again, it gives the reply it had."""
    known: dict[tuple[object, ...], Answer | Failure] = {}

    def asked(asks: Sequence[tuple[Seat, Ask]], task: str) -> Sequence[Answer | Failure]:
        fresh = [(seat, one) for seat, one in asks if _key(seat, one) not in known]
        for (seat, one), reply in zip(fresh, ask(fresh, task) if fresh else (), strict=True):
            known[_key(seat, one)] = reply
        return [known[_key(seat, one)] for seat, one in asks]

    return asked


def _key(seat: Seat, ask: Ask) -> tuple[object, ...]:
    """What tells a judge's requests apart; the schema follows from the rest."""
    return seat.label, ask.messages, ask.sampling, ask.draw, ask.purpose
