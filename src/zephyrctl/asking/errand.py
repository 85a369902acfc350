"""What a stage is about to ask: how it is estimated, agreed to, tried on a few rows, and carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Generic, TypeVar

from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.asking.calling import Asker, budget_of, open_caller, replay_only, without_progress
from zephyrctl.asking.config import AskingConfig
from zephyrctl.asking.consent import FREE_TO_GO, agree, check_prices, decide
from zephyrctl.asking.ending import tell_money
from zephyrctl.asking.estimate import (
    Estimate,
    Fewer,
    Rung,
    ladder,
    ladder_table,
    table,
    told,
)
from zephyrctl.asking.outlook import cheaper, optimiser_steps
from zephyrctl.asking.pilot import forecast
from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch, estimated, holds_any, seen_before
from zephyrctl.errors import UsageError
from zephyrctl.events import Event, Note, Progress, Warning_, silent
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import dollars
from zephyrctl.providers.base import AnyProvider, BatchProvider
from zephyrctl.providers.calling.caller import Caller

R = TypeVar("R")
C = TypeVar("C")

CHUNK = 512
"""Rows that go through their waves together."""
_PILOT_AHEAD = 15
_WALK_AHEAD = 2


@dataclass(frozen=True)
class Training:
    """What the rows become: the stage that trains on them, how many of the likely ones, of how many tokens each."""

    stage: str
    rows: Callable[[int], float]
    tokens: Callable[[Estimate], float]


@dataclass
class Errand(Generic[R, C]):
    """Rows to ask about, and how.

    `draw` sketches the calls for some rows; `through` takes rows through all their calls and must not change anything
    shared: it runs in several threads. `teacher` is whom the ladder replaces (None = nobody), named with `flag` and
    known to the parts as `role`.
    """

    config: AskingConfig
    work: Work
    step: Step
    ledger: Ledger
    rows: Sequence[R]
    providers: Sequence[AnyProvider]
    draw: Callable[[Sketch, Sequence[R]], None]
    through: Callable[[Sequence[R], Asker], C]
    teacher: Seat | None
    role: str = "teacher"
    flag: str = "--teacher"
    unit: str = "rows"
    fewer: Sequence[Fewer] = field(default_factory=tuple)
    training: Training | None = None
    cap: int | None = field(default=None, init=False)
    """What this step may spend at most because nobody agreed to more, in uusd; settled by `prepare`."""
    _said: set[str] = field(default_factory=set, init=False, repr=False)

    def prepare(self) -> StepResult | None:
        """Estimate, show, and get consent; None = go on, a result = stop here (a dry run, a pilot).

        Raises UsageError for a budget that cannot be kept, or without consent.
        """
        if self.config.accept_partial:
            if self.config.pilot is not None:
                raise UsageError("--pilot pays and --accept-partial does not; give one of them")
            return None
        rows = self.rows[: self.config.pilot]
        estimate = self._estimate(rows)
        what = f"{self.config.stage} plan"
        if self.config.pilot is not None:
            what = f"{self.config.stage} pilot: {len(rows)} of {len(self.rows)} {self.unit}"
        if estimate.parts:
            self.work.emit(table(estimate, what))
        self._say_where()
        check_prices(estimate, limit=self._limited and not self.work.dry_run)
        if estimate.unpriced:
            names = ", ".join(estimate.unpriced)
            self.work.emit(
                Warning_(
                    f"the price of {names} is not known: only its tokens are counted (--price in=…,out=…)"
                )
            )
        if self.work.dry_run:
            return StepResult(None, None, plan=self._outlook(estimate, rows))
        self._consent(estimate, rows)
        if self.config.pilot is not None:
            return StepResult(None, None, plan=self._pilot(estimate, rows))
        return None

    def caller(self) -> Caller:
        """The caller of the run itself, for a `with` statement."""
        replay = self.config.accept_partial
        return open_caller(
            self.config, self.work, self.ledger, self.step, replay=replay, cap=self.cap, emit=self._news
        )

    def _news(self, event: Event) -> None:
        """Passes on what `prepare` has not said already."""
        if not (isinstance(event, Note) and event.text in self._said):
            self.work.emit(event)

    def results(self, caller: Caller) -> Iterator[tuple[Sequence[R], C]]:
        """Chunks of rows with what came of them, in order."""
        chunks = _chunks(self.rows, self._at_once)
        made = caller.overlap(chunks, lambda chunk: self.through(chunk, Asker(caller)))
        return zip(chunks, made, strict=True)

    @property
    def _at_once(self) -> int:
        """Rows that go through their waves together: all of them where a wave takes hours or goes into a file."""
        offline = any(getattr(provider, "offline", False) for provider in self.providers)
        return max(1, len(self.rows)) if offline or self.config.mode != "online" else CHUNK

    @property
    def _limited(self) -> bool:
        limit = self.config.max_usd is not None or self.work.project.max_usd is not None
        return limit and not replay_only(self.config)

    def _estimate(self, rows: Sequence[R]) -> Estimate:
        seen = seen_before(self.ledger, self.config.stage, list(self.providers))
        return estimated(lambda sketch: self.draw(sketch, rows), seen, batch=self.config.mode == "batch")

    def _consent(self, estimate: Estimate, rows: Sequence[R]) -> None:
        given = self.config.max_usd is not None or self.work.project.max_usd is not None or self.work.yes
        if estimate.free:
            return
        spent = self.ledger.spend(self.step.key[:16]).spent
        if not given and not estimate.unpriced:
            self.cap = FREE_TO_GO
        limit = budget_of(self.config, self.work.project).step
        held = None
        large = decide(spent + estimate.cost.likely, consent=given) == "ask"
        if large or (limit and spent + estimate.cost.likely > limit):
            held = self._held(rows)
        rest = estimate if held is None else _rest(estimate, held)
        if large and rest.cost.likely > 0 and decide(spent + rest.cost.likely, consent=given) == "ask":
            agree(rest, self.config.stage, self.work.ask, spent=spent)
            self.cap = None
        if rest.cost.high > 0:
            known = "" if held is not None else ", before what the ledger already holds"
            self.work.emit(Note(f"estimate{known}: {told(rest.cost)}"))
        if limit and spent + rest.cost.likely > limit:
            self.work.emit(
                Warning_(
                    f"the limit of {dollars(limit)} is below the likely cost: when it is reached, the command ends "
                    "with exit 7 and what is paid is kept"
                )
            )

    def _say_where(self) -> None:
        """What the providers have to say (another address, a date of retirement), and a price that is not needed."""
        for sentence in dict.fromkeys(s for p in self.providers for s in getattr(p, "notices", ())):
            self._said.add(sentence)
            self.work.emit(Note(sentence))
        sources = {p.price.source for p in self.providers if p.price is not None}
        if self.config.price is not None and "--price" not in sources:
            self.work.emit(Warning_("--price is not used: it is for models whose price is not known"))

    def _held(self, rows: Sequence[R]) -> Asker | None:
        """What of it the ledger holds, found by going the stage's own way without sending; None where it holds nothing
        of it."""
        if not holds_any(self.ledger, list(self.providers)):
            return None
        with open_caller(self.config, self.work, self.ledger, self.step, replay=True, emit=silent) as caller:
            total = Asker(caller)
            for one in self._askers(caller, _chunks(rows, self._at_once), _WALK_AHEAD):
                total.add(one)
        return total if total.there else None

    def _askers(self, caller: Caller, chunks: Sequence[Sequence[R]], ahead: int) -> Iterator[Asker]:
        def walk(chunk: Sequence[R]) -> Asker:
            asker = Asker(caller, batch=self.config.mode == "batch")
            self.through(chunk, asker)
            return asker

        return caller.overlap(chunks, walk, ahead=ahead)

    def _outlook(self, estimate: Estimate, rows: Sequence[R]) -> dict[str, Any]:
        """Shows the rest of a dry run; all of it as a document."""
        plan: dict[str, Any] = {"estimate": estimate.as_dict()}
        held = self._held(rows)
        rest = estimate if held is None else _rest(estimate, held)
        if held is not None:
            there = sum(held.there.values())
            plan["ledger"] = {"replies": there, "rest": rest.as_dict()}
            self.work.emit(
                Note(f"the ledger already holds {there} of these replies; what is left: {told(rest.cost)}")
            )
        if not estimate.free:
            teacher = self.teacher
            others = cheaper(teacher.spec, teacher.provider.price, date.today()) if teacher else []
            rungs = ladder(estimate, others, role=self.role, flag=self.flag, fewer=self.fewer)
            if held is not None:
                rungs.insert(1, Rung("of it still to be paid", "", rest))
            self.work.emit(ladder_table(rungs))
            plan["ladder"] = [_rung(rung) for rung in rungs]
        if self.training is not None:
            plan["training"] = self._training(estimate, rows)
        return plan

    def _training(self, estimate: Estimate, rows: Sequence[R]) -> dict[str, Any]:
        assert self.training is not None
        stage = self.training.stage
        made = self.training.rows(len(rows))
        tokens = self.training.tokens(estimate)
        steps = optimiser_steps(self.work, stage, made, tokens, self.step.world)
        self.work.emit(
            Note(
                f"about {made:,.0f} training rows at most: {steps:,} optimiser steps of {stage} with this edition"
            )
        )
        return {"stage": stage, "rows": round(made), "optimiser_steps": steps}

    def _pilot(self, estimate: Estimate, rows: Sequence[R]) -> dict[str, Any]:
        """Pays for the first rows, one chain of calls each, and says what all of them would cost."""
        if not rows:
            raise UsageError(f"there are no {self.unit} to try: nothing was asked")
        self.work.store.prepare()
        ahead = 0 if any(isinstance(p, BatchProvider) for p in self.providers) else _PILOT_AHEAD
        askers: list[Asker] = []
        emit = without_progress(self.work.emit)
        online = self.config.model_copy(update={"mode": "online"})
        with open_caller(online, self.work, self.ledger, self.step, emit=emit, cap=self.cap) as caller:
            for asker in self._askers(caller, [rows[i : i + 1] for i in range(len(rows))], ahead):
                askers.append(asker)
                self.work.emit(Progress(f"pilot {self.unit}", len(askers), len(rows)))
        tell_money(self.work.emit, caller.summary(), usable=0, unit="row")
        plan: dict[str, Any] = {"estimate": estimate.as_dict()}
        if estimate.unpriced:
            tokens = sum(asker.tokens for asker in askers) / len(rows)
            self.work.emit(Note(f"{len(rows)} {self.unit} took {tokens:,.0f} tokens each on average"))
            return plan | {"tokens_per_row": round(tokens, 1)}
        found = forecast([float(asker.worth) for asker in askers], len(self.rows))
        self.work.emit(Note(f"pilot: {found.sentence()}; the full run replays these {len(rows)} {self.unit}"))
        return plan | {"forecast": found.as_dict()}


def _rest(estimate: Estimate, held: Asker) -> Estimate:
    """What is left to ask; nothing when every call on the way was in the ledger, however many were expected."""
    if held.unpaid == 0:
        return Estimate(tuple(part.rest(part.calls) for part in estimate.parts))
    return estimate.rest(held.there)


def _rung(rung: Rung) -> dict[str, Any]:
    body = rung.estimate.as_dict()
    return {"what": rung.what, "how": rung.how, "calls": body["calls"], "usd": body["usd"]}


def _chunks(rows: Sequence[R], size: int) -> list[Sequence[R]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
