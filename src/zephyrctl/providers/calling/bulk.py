"""Asking in bulk: requests handed in as batches, waited for, and their replies joined by the ledger's key.

A batch is in the ledger before it is handed in and until all its results are; so a process that is killed loses
nothing, and the same command goes on with what is open. What a batch does not answer is finished online.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from zephyrctl.errors import TryAgain, ZephyrError
from zephyrctl.events import Emit, Note
from zephyrctl.ledger.entries import Batch, Budget, InBatch, Intent, NoRoom, Run, StoredReply
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Batching, BatchLine
from zephyrctl.providers.calling.bulk_batch import Carrier, Desk, Ending
from zephyrctl.providers.calling.bulk_open import concerning
from zephyrctl.providers.calling.bulk_plan import by_place, halves, new_batch_id, plan
from zephyrctl.providers.calling.job import Job, Result
from zephyrctl.providers.calling.purse import Purse

ROOM_SECONDS = 300.0
"""Until a small file that found no room in the account's queue is handed in again."""
_SMALL = 500
"""Requests of a file that is not made smaller for want of room in the queue at once,"""
_REFUSALS = 3
"""but after so many refusals; a single request is asked online then."""

Sleep = Callable[[float], Awaitable[None]]


class BulkSettings(Protocol):
    """What is taken from the caller's settings: the limits of money, and seconds of grace when stopping."""

    @property
    def budget(self) -> Budget: ...
    @property
    def grace(self) -> float: ...


async def run_bulk(
    ledger: Ledger,
    run: Run,
    jobs: Sequence[Job],
    *,
    settings: BulkSettings,
    emit: Emit,
    settle: Callable[[str, Result], None],
    stopping: asyncio.Event,
    sleep: Sleep = asyncio.sleep,
) -> list[Job]:
    """Settle jobs whose providers take batches; the jobs to finish online come back.

    Batches that are open from earlier are gone on with, and none is handed in twice. When `stopping` is set, batches
    stay open at the provider and the function returns: the caller raises Interrupted. `sleep` is there for tests.

    Raises BudgetReached when nothing more fits into the budget, ProviderDown after many failures in a row,
    AuthError, UsageError and the ledger's errors; open batches stay open then, too.
    """
    for job in jobs:
        job.batched = True
    work = _Work(ledger, run, settings, stopping, sleep)
    work.desk = Desk(ledger, emit, settle, work.nap, {job.key: job for job in jobs})
    await work.run()
    return work.desk.left


def write_down(ledger: Ledger, run: Run, jobs: Sequence[Job]) -> TryAgain:
    """Write down requests that cannot be sent from here, for `ledger batch export`; the error that says so."""
    ledger.want([job.request for job in jobs], run).result()
    models = Counter(str(job.request.body.get("model", job.request.model)) for job in jobs)
    steps: list[str] = []
    for number, model in enumerate(models, 1):
        mark, choice = (f"-{number}", f" --model {model}") if len(models) > 1 else ("", "")
        steps += [
            f"zephyrctl ledger batch export -o requests{mark}.jsonl{choice}",
            f"vllm run-batch -i requests{mark}.jsonl -o replies{mark}.jsonl --model {model}",
            f"zephyrctl ledger batch import replies{mark}.jsonl",
        ]
    wait = ", ".join(f"{count:,} for {model}" for model, count in models.items())
    return TryAgain(
        f"requests wait to be answered elsewhere: {wait}",
        hint="; ".join([*steps, "then the same command again"]),
        resume="run the same command again when the replies are imported",
    )


class _Stopped(Exception):
    """A stop was asked for while something was waited for."""


class _Work:
    """The files to hand in, and the batches that are out."""

    desk: Desk

    def __init__(
        self, ledger: Ledger, run: Run, settings: BulkSettings, stopping: asyncio.Event, sleep: Sleep
    ) -> None:
        self._ledger, self._run, self._settings = ledger, run, settings
        self._stopping, self._sleep = stopping, sleep
        self._halted = asyncio.Event()
        self._queue: deque[Sequence[Job]] = deque()
        self._tasks: dict[asyncio.Task[Ending], Batch] = {}
        self._refusal: NoRoom | None = None
        self._unroomed: Counter[str] = Counter()
        """How often a small file found no room, by its first key."""
        self._held = False
        """Nothing more is handed in before a batch ends."""
        self._left = 0
        """Batches that have left the account's queue,"""
        self._left_before: dict[str, int] = {}
        """and how many had when a batch was begun."""

    async def run(self) -> None:
        """Work until nothing waits, or a stop. Raises what ended the work."""
        waiting = self.desk.waiting
        self._jobs = len(waiting)
        taken: set[str] = set()
        for batch in concerning(self._ledger, waiting):
            taken.update(batch.keys)
            self._start(batch, None)
        for group in by_place(job for key, job in waiting.items() if key not in taken).values():
            assert isinstance(group[0].provider, Batching)
            planned = plan(group, group[0].provider.batch_limits)
            self._queue.extend(planned.files)
            for job in planned.oversized:
                self.desk.online(job.key)
        try:
            await self._drive()
        finally:
            await self._wind_up()

    async def nap(self, seconds: float) -> None:
        """Wait. Raises _Stopped as soon as a stop is asked for."""
        waits = [
            asyncio.ensure_future(self._sleep(seconds)),
            asyncio.ensure_future(self._stopping.wait()),
            asyncio.ensure_future(self._halted.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._stopping.is_set() or self._halted.is_set():
            raise _Stopped

    async def _drive(self) -> None:
        stopper = asyncio.create_task(self._stopping.wait())
        try:
            while not self._stopping.is_set():
                while self._queue and not self._held:
                    await self._begin(self._queue.popleft())
                if not self._tasks:
                    break
                done, _ = await asyncio.wait({*self._tasks, stopper}, return_when=asyncio.FIRST_COMPLETED)
                self._held = False
                endings = {self._tasks[task].id: task.result() for task in self._tasks.keys() & done}
                self._tasks = {task: batch for task, batch in self._tasks.items() if task not in done}
                self._left += sum(not ending.why for ending in endings.values())
                for batch_id, ending in endings.items():
                    await self._again(ending, room=self._left > self._left_before[batch_id])
        except _Stopped:
            return
        finally:
            stopper.cancel()
        if self._queue and self._refusal is not None and not self._stopping.is_set():
            settled = self._jobs - len(self.desk.waiting)
            purse = Purse(self._ledger, self._run, self._settings.budget)
            raise purse.reached(self._refusal, done=settled, total=self._jobs)

    async def _begin(self, file: Sequence[Job]) -> None:
        """Write a batch down and start to hand it in, as far as the budget goes."""
        request = file[0].request
        name = new_batch_id(datetime.now(UTC), secrets.token_hex(6))
        batch = Batch(name, request.provider, request.origin, request.model, self._run.id, "building")
        for job in file:
            job.bound()
        intents = [Intent(job.request, job.reserve) for job in file]
        begun = await asyncio.wrap_future(
            self._ledger.begin_batch(batch, intents, self._run, self._settings.budget)
        )
        lines: list[BatchLine] = []
        refused: list[Job] = []
        elsewhere: list[Job] = []
        for job, there in zip(file, begun, strict=True):
            if isinstance(there, int):
                lines.append(BatchLine(job.key, job.request.body))
            elif isinstance(there, StoredReply):
                self.desk.give(job.key, partial(Job.answer, reply=there, replayed=True))
            elif isinstance(there, NoRoom):
                refused.append(job)
                self._refusal = there
            elif isinstance(there, InBatch):
                elsewhere.append(job)
            else:
                self.desk.online(job.key)
        if lines:
            self._start(replace(batch, keys=tuple(line.custom_id for line in lines)), lines)
        if refused:
            self._queue.appendleft(refused)
            self._held = True
        if elsewhere:
            self._join(elsewhere)

    def _join(self, jobs: Sequence[Job]) -> None:
        """Wait for batches of other processes that hold these jobs; hand in what is in none any more."""
        found = {key for batch in self._tasks.values() for key in batch.keys}
        for batch in concerning(self._ledger, {job.key for job in jobs} - found):
            found.update(batch.keys)
            self._start(batch, None)
        free = [job for job in jobs if job.key not in found]
        if free:
            self._queue.append(free)

    def _start(self, batch: Batch, lines: Sequence[BatchLine] | None) -> None:
        job = next(self.desk.waiting[key] for key in batch.keys if key in self.desk.waiting)
        task = asyncio.create_task(Carrier(self.desk, batch, job).carry(lines))
        self._tasks[task] = batch
        self._left_before[batch.id] = self._left

    async def _again(self, ending: Ending, *, room: bool) -> None:
        """Queue what is to be handed in anew. `room` = another batch has left the account's queue since."""
        if not ending.again:
            return
        if ending.why == "queue" and (room or self._tasks):
            self._queue.appendleft(ending.again)
            self._held = not room
        elif ending.why == "queue" and self._waits_for_room(ending.again):
            await self.nap(ROOM_SECONDS)
            self._queue.appendleft(ending.again)
        elif ending.why == "queue" and len(ending.again) == 1:
            self.desk.online(ending.again[0].key)
        elif ending.why:
            self._queue.extendleft(part for part in reversed(halves(ending.again)) if part)
        else:
            self._queue.append(ending.again)

    def _waits_for_room(self, file: Sequence[Job]) -> bool:
        """Whether a file that found no room in an empty queue of ours is handed in again as it is.

        One that the queue never takes would wait for ever.
        """
        first = file[0].key
        self._unroomed[first] += 1
        waits = len(file) <= _SMALL and self._unroomed[first] < _REFUSALS
        if not waits:
            del self._unroomed[first]
        return waits

    async def _wind_up(self) -> None:
        """Let what is being handed in or stored come to its end, within the grace; the rest stays open."""
        self._halted.set()
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=self._settings.grace)
        for task in late:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(ZephyrError):  # what ended the work matters more
            names = {batch.id for batch in self._ledger.batches(keys=False)}
            still = [batch for batch in self._tasks.values() if batch.id in names]
            requests = sum(len(batch.keys) for batch in still)
            if still:
                self.desk.emit(
                    Note(
                        f"{len(still)} {'batch' if len(still) == 1 else 'batches'} with {requests:,} requests stay "
                        "open at the provider and go on there; the same command picks them up"
                    )
                )
