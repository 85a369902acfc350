"""A provider with batches whose every turn is decided by the test; what it was handed outlives a killed caller."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.events import Recorder
from zephyrctl.ledger.entries import Budget, Request, Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import Price, Tokens
from zephyrctl.providers.base import (
    Ask,
    BatchLimits,
    BatchLine,
    BatchResult,
    BatchState,
    Reading,
    Received,
    Retryable,
    Sampling,
    World,
    json_object,
    outcome_of,
    wire_messages,
)
from zephyrctl.providers.calling import bulk
from zephyrctl.providers.calling.job import Job, Result
from zephyrctl.providers.calling.line import Line
from zephyrctl.records import Message

RUN = Run("run-1", "gen-sft")
USED = Tokens(100, 10)
PRICE = Price(2.0, 10.0)
"""Dollars per million tokens: a reply of USED costs 300 uusd online, 150 in a batch."""

LIMITS = BatchLimits(1000, 1_000_000)

Turn = Callable[[str, int], BatchResult | None]


def fine(key: str, _: int) -> BatchResult:
    """Every row is answered."""
    return BatchResult(key, json.dumps({"text": f"answer to {key[:6]}"}).encode())


@dataclass
class Office:
    """The far side: batches by name, how often each key was billed, and the faults to come.

    `turn` makes the result of a row from its key and its place; `polls` looks find a batch running; `before` is
    called with the name of each operation and may raise.
    """

    turn: Turn = fine
    polls: int = 1
    states: list[str] = field(default_factory=list)
    before: Callable[[str], None] = lambda operation: None
    after: Callable[[str], None] = lambda operation: None
    batches: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    billed: Counter[str] = field(default_factory=Counter)
    looks: Counter[str] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)
    extra: list[BatchResult] = field(default_factory=list)
    unsettled: int = 0
    finds: int = 0


class OfficeProvider:
    """A model behind an office."""

    kind = "openai"
    endpoint = "/chat/completions"
    world: World = "real"
    dropped: tuple[str, ...] = ()
    offline = False

    def __init__(
        self,
        office: Office,
        *,
        name: str = "m",
        limits: BatchLimits = LIMITS,
        price: Price | None = PRICE,
    ) -> None:
        self.office, self.name, self.batch_limits, self.price = office, name, limits, price
        self.label, self.origin = f"openai:{name}", "https://office.example/v1"

    def wire(self, ask: Ask) -> dict[str, Any]:
        return {"model": self.name, "messages": wire_messages(ask.messages), "max_tokens": 10}

    def read(self, raw: bytes) -> Reading:
        document = json_object(raw)
        if "text" not in document:
            raise Retryable("bad_envelope", "no text")
        text = str(document["text"])
        return Reading(text, outcome_of(text), "stop", self.name, USED)

    def bound(self, body: Mapping[str, Any]) -> tuple[int, int]:
        return 100, 10

    async def send(self, body: Mapping[str, Any]) -> Received:
        raise AssertionError("nothing is sent online here")

    async def batch_submit(self, batch: str, lines: Sequence[BatchLine]) -> str:
        await asyncio.sleep(0)
        office = self.office
        office.before("submit")
        name = f"remote-{len(office.batches)}"
        office.batches[name] = (batch, tuple(line.custom_id for line in lines))
        office.sizes.append(len(lines))
        office.billed.update(office.batches[name][1])
        office.after("submit")
        return name

    async def batch_find(self, batch: str, keys: Sequence[str], others: Collection[str]) -> str | None:
        await asyncio.sleep(0)
        office = self.office
        office.before("find")
        office.finds += 1
        if office.finds <= office.unsettled:
            raise Retryable("unsettled", "cannot tell yet")
        return next((name for name, (ours, _) in office.batches.items() if ours == batch), None)

    async def batch_poll(self, remote_id: str) -> BatchState:
        await asyncio.sleep(0)
        office = self.office
        office.before("poll")
        office.looks[remote_id] += 1
        total = len(office.batches[remote_id][1])
        if office.looks[remote_id] <= office.polls:
            return BatchState("running", 0, total)
        number = list(office.batches).index(remote_id)
        state = office.states[number] if number < len(office.states) else "ended"
        if state in ("refused", "full"):
            office.billed.subtract(office.batches[remote_id][1])
        return BatchState(state, total, total, f"scripted: {state}")  # type: ignore[arg-type]

    async def batch_results(self, remote_id: str) -> AsyncIterator[BatchResult]:
        office = self.office
        office.before("results")
        for place, key in enumerate(reversed(office.batches[remote_id][1])):
            office.before("row")
            result = office.turn(key, place)
            if result is not None:
                yield result
        for result in office.extra:
            yield result

    async def batch_cancel(self, remote_id: str) -> None:
        raise AssertionError("nobody asked for that")


@dataclass
class Settings:
    budget: Budget = field(default_factory=Budget)
    grace: float = 5.0


def job_of(provider: Any, text: str, line: Line | None = None) -> Job:
    """A job for one question."""
    ask = Ask((Message(role="user", content=text),), Sampling())
    request = Request.of(
        provider=provider.kind,
        origin=provider.origin,
        endpoint=provider.endpoint,
        model=provider.label,
        body=provider.wire(ask),
        draw=0,
    )
    return Job(provider, line or Line(provider, 8), request, ask)


def jobs_of(provider: Any, number: int, start: int = 0) -> list[Job]:
    """Jobs for that many questions."""
    line = Line(provider, 8)
    return [job_of(provider, f"question {i}", line) for i in range(start, start + number)]


@dataclass
class Bench:
    """One caller's run over a ledger, with everything that came out."""

    ledger: Ledger
    settings: Settings = field(default_factory=Settings)
    results: dict[str, Result] = field(default_factory=dict)
    told: Recorder = field(default_factory=Recorder)
    naps: list[float] = field(default_factory=list)
    stop_at_nap: int | None = None

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """`run_bulk` as the caller runs it: what the ledger knows is settled first."""
        known = self.ledger.known([job.key for job in jobs])
        for job in jobs:
            if job.key in known:
                self.settle(job.key, job.answer(known[job.key], replayed=True))
        return asyncio.run(self._run([job for job in jobs if job.key not in known]))

    def settle(self, key: str, result: Result) -> None:
        assert key not in self.results, "settled twice"
        self.results[key] = result

    async def _run(self, jobs: Sequence[Job]) -> list[Job]:
        stopping = asyncio.Event()

        async def sleep(seconds: float) -> None:
            self.naps.append(seconds)
            if self.stop_at_nap is not None and len(self.naps) >= self.stop_at_nap:
                stopping.set()
            await asyncio.sleep(0)

        return await bulk.run_bulk(
            self.ledger,
            RUN,
            jobs,
            settings=self.settings,
            emit=self.told,
            settle=self.settle,
            stopping=stopping,
            sleep=sleep,
        )
