"""The life of one batch: handed in, waited for, its results stored under the ledger's keys, closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar

from zephyrctl.errors import AuthError, ProviderDown, UsageError
from zephyrctl.events import Calls, Emit, Note, Warning_
from zephyrctl.ledger.entries import Batch, Ended, Finished
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Batching, BatchLine, BatchResult, BatchState, Rejected, Retryable
from zephyrctl.providers.calling.bulk_open import HANDING_IN, LOOK_SECONDS, close, named, other_names
from zephyrctl.providers.calling.job import Job, Result
from zephyrctl.redact import redact

FIRST_SECONDS = 5.0
LONGEST_SECONDS = 60.0
"""How often an open batch is looked at: at first, and in the end."""
AGAIN_SECONDS = 30.0
"""Until results that are missing from an ended batch are looked for once more."""
_GROWTH = 1.5
_MOST_GROWN = 12
"""From so many tries on waits grow no further."""
_PATIENCE = 20
"""Calls about one batch that may fail in a row before the provider counts as down."""
_GROUP = 256
"""Replies stored in one transaction."""

T = TypeVar("T")


@dataclass
class Desk:
    """What the batches of one caller share.

    `waiting` = the jobs without a result yet, by key; `left` = those to finish online; `nap` waits, and raises when a
    stop was asked for.
    """

    ledger: Ledger
    emit: Emit
    settle: Callable[[str, Result], None]
    nap: Callable[[float], Awaitable[None]]
    waiting: dict[str, Job]
    left: list[Job] = field(default_factory=list)
    progress: dict[str, tuple[int, int]] = field(default_factory=dict)

    def give(self, key: str, result: Callable[[Job], Result]) -> None:
        """Settle a job, unless it is not one of ours or has its result."""
        job = self.waiting.pop(key, None)
        if job is not None:
            self.settle(key, result(job))

    def online(self, key: str) -> None:
        """Leave a job for asking it alone."""
        job = self.waiting.pop(key, None)
        if job is not None:
            job.batched = False
            self.left.append(job)

    def replay(self, keys: Sequence[str]) -> None:
        """Settle what another process has stored."""
        ours = [key for key in keys if key in self.waiting]
        for key, reply in self.ledger.known(ours).items():
            self.give(key, partial(Job.answer, reply=reply, replayed=True))

    def tell(self, batch: Batch, state: BatchState) -> None:
        """Emit how far all batches are."""
        total = state.total or len(batch.keys)
        self.progress[batch.id] = (total if state.state != "running" else state.done, total)
        done, total = (sum(numbers) for numbers in zip(*self.progress.values(), strict=True))
        self.emit(Calls("batch", done, total, in_flight=total - done))


@dataclass(frozen=True)
class Ending:
    """How a batch ended for the jobs that it did not settle: `again` = to be handed in anew; `why` = the file was too
    large, or the account's queue too full for it."""

    again: tuple[Job, ...] = ()
    why: Literal["", "size", "queue"] = ""


class _Refused(Exception):
    """The provider does not take this file."""

    def __init__(self, error: Rejected) -> None:
        super().__init__(error.detail)
        self.error = error


class Carrier:
    """Carries one batch through; `job` is any request of it, for its provider and its way to read a reply."""

    def __init__(self, desk: Desk, batch: Batch, job: Job) -> None:
        assert isinstance(job.provider, Batching)
        self._desk, self._batch, self._job = desk, batch, job
        self._provider: Batching = job.provider
        self._perhaps_taken = False
        """Whether an attempt to hand the file in may have worked although it failed."""

    async def carry(self, lines: Sequence[BatchLine] | None) -> Ending:
        """Settle what the batch answers. `lines` = to be handed in now; None = it was begun earlier.

        Raises AuthError, UsageError, ProviderDown, the ledger's errors, and what `nap` raises.
        """
        desk, batch = self._desk, self._batch
        try:
            if lines is None:
                found = await named(desk.ledger, self._provider, batch, self._persist, desk.nap)
            else:
                found = await self._hand_in(lines)
        except _Refused as refusal:
            too_large = refusal.error.status == 413 and len(batch.keys) > 1
            return await self._lost(BatchState("refused", detail=refusal.error.detail), too_large=too_large)
        if found is None or found.remote_id is None:
            desk.replay(batch.keys)
            return Ending(self._waiting())
        state = await self._watch(found.remote_id)
        if state.state != "ended":
            return await self._lost(state)
        await self._collect(found.remote_id)
        return Ending()

    async def _hand_in(self, lines: Sequence[BatchLine]) -> Batch:
        """The batch with the provider's name for it. Raises _Refused, AuthError, UsageError, ProviderDown."""
        desk, batch = self._desk, self._batch
        HANDING_IN.add(batch.id)
        try:
            remote_id = await self._persist(lambda: self._submit(lines))
            await asyncio.wrap_future(desk.ledger.set_batch(batch.id, state="open", remote_id=remote_id))
        except (AuthError, UsageError) as error:
            if not self._perhaps_taken:
                await close(desk.ledger, batch, error.kind, sent=False)
            raise
        finally:
            HANDING_IN.discard(batch.id)
        desk.emit(Note(f"{len(lines):,} requests are with {self._job.request.model} as batch {remote_id}"))
        return replace(batch, state="open", remote_id=remote_id)

    async def _submit(self, lines: Sequence[BatchLine]) -> str:
        if self._perhaps_taken and (found := await self._looked_for()) is not None:
            return found
        try:
            return await self._provider.batch_submit(self._batch.id, lines)
        except Rejected as error:
            raise _Refused(error) from None
        except Retryable as error:
            self._perhaps_taken |= error.reason != "rate_limit"
            raise

    async def _looked_for(self) -> str | None:
        """The provider's name of a batch that may be there; looked for twice, as it may be listed late."""
        others = other_names(self._desk.ledger)
        for look in range(2):
            if look:
                await self._desk.nap(LOOK_SECONDS)
            found = await self._provider.batch_find(self._batch.id, self._batch.keys, others)
            if found is not None:
                return found
        return None

    async def _watch(self, remote_id: str) -> BatchState:
        wait = FIRST_SECONDS
        while True:
            state = await self._persist(lambda: self._provider.batch_poll(remote_id))
            self._desk.tell(self._batch, state)
            if state.state != "running":
                return state
            await self._desk.nap(wait)
            wait = min(LONGEST_SECONDS, wait * _GROWTH)

    async def _lost(self, state: BatchState, *, too_large: bool = False) -> Ending:
        """End a batch that gives nothing."""
        desk, batch = self._desk, self._batch
        await close(desk.ledger, batch, state.state, charged=state.state == "lost")
        desk.replay(batch.keys)
        where = f"a batch of {len(batch.keys):,} requests to {self._job.request.model}"
        if too_large:
            return Ending(self._waiting(), "size")
        if state.state == "full":
            desk.emit(Note(f"{where} found no room in the account's queue: {redact(state.detail)}"))
            return Ending(self._waiting(), "queue")
        why = "was refused" if state.state == "refused" else "is gone, and may have been charged"
        desk.emit(Warning_(f"{where} {why} ({redact(state.detail)}): they are asked one by one"))
        for key in batch.keys:
            desk.online(key)
        return Ending()

    async def _collect(self, remote_id: str) -> None:
        desk, batch = self._desk, self._batch
        await self._persist(lambda: self._read(remote_id))
        missing = desk.ledger.batched_attempts(batch.id)
        if missing:
            await desk.nap(AGAIN_SECONDS)
            await self._persist(lambda: self._read(remote_id))
            missing = desk.ledger.batched_attempts(batch.id)
        if missing:
            desk.emit(
                Warning_(
                    f"{len(missing):,} of {len(batch.keys):,} requests are in no result file of batch {remote_id}: "
                    "they count as in doubt and are asked one by one"
                )
            )
            ended = [Ended(attempt, "in_doubt", "missing") for attempt in missing.values()]
            await asyncio.wrap_future(desk.ledger.fail_many(ended))
        await asyncio.wrap_future(desk.ledger.set_batch(batch.id, state="done"))
        desk.replay(batch.keys)
        for key in batch.keys:
            desk.online(key)

    async def _read(self, remote_id: str) -> None:
        """Store all results that are not stored yet."""
        batch = self._batch
        attempts, ours = self._desk.ledger.batched_attempts(batch.id), set(batch.keys)
        seen: set[str] = set()
        strange = repeated = 0
        group: list[tuple[int, BatchResult]] = []
        results = self._provider.batch_results(remote_id)
        try:
            async for result in results:
                key = result.custom_id
                strange += key not in ours
                repeated += key in seen
                if key in attempts and key not in seen:
                    group.append((attempts[key], result))
                seen.add(key)
                if len(group) >= _GROUP:
                    await self._store(group)
                    group = []
        finally:
            if isinstance(results, AsyncGenerator):
                await results.aclose()
        await self._store(group)
        if strange or repeated:
            self._desk.emit(
                Warning_(
                    f"batch {remote_id} gave {strange} results that were not asked for and {repeated} twice; they are "
                    "left out"
                )
            )

    async def _store(self, group: Sequence[tuple[int, BatchResult]]) -> None:
        desk = self._desk
        finished: list[Finished] = []
        ended: list[Ended] = []
        for attempt, result in group:
            try:
                if result.body is None:
                    ended.append(Ended(attempt, "error", result.reason))
                else:
                    finished.append(self._finished(attempt, result.custom_id, result.body))
            except Exception as error:
                # a line with a reply was charged, whatever is in it; it is not the end of the other lines
                reason = error.reason if isinstance(error, Retryable) else "unreadable"
                ended.append(Ended(attempt, "in_doubt", reason))
        stored = await asyncio.wrap_future(desk.ledger.finish_many(finished))
        await asyncio.wrap_future(desk.ledger.fail_many(ended))
        for one, reply in zip(finished, stored, strict=True):
            desk.give(one.key, partial(Job.answer, reply=reply, replayed=False))
        for _, result in group:
            if result.final:
                desk.give(result.custom_id, partial(Job.failure, reason=result.reason, detail=result.detail))
            else:
                desk.online(result.custom_id)

    def _finished(self, attempt: int, key: str, body: bytes) -> Finished:
        reply = self._job.read(body)
        # without counts the ledger takes this attempt's own reservation
        return Finished(attempt, key, reply, self._job.cost(reply.tokens) if reply.tokens else None)

    def _waiting(self) -> tuple[Job, ...]:
        waiting = self._desk.waiting
        return tuple(waiting[key] for key in self._batch.keys if key in waiting)

    async def _persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """What a call gives, tried again for as long as it may pass.

        Raises ProviderDown after many failures in a row. A provider that cannot tell yet is asked without end, ever
        more rarely.
        """
        failures = looks = 0
        while True:
            try:
                return await call()
            except (Retryable, Rejected) as error:
                looks += error.reason == "unsettled"
                failures += error.reason != "unsettled"
                if failures >= _PATIENCE:
                    request = self._job.request
                    raise ProviderDown(
                        f"{request.model} at {request.origin}: {failures} calls about a batch failed in a row; "
                        f"the last one: {redact(error.detail)}",
                        hint="the batch stays open there; the same command picks it up",
                        resume="run the same command again",
                    ) from None
                tries = min(_MOST_GROWN, looks if error.reason == "unsettled" else failures)
                own = min(LONGEST_SECONDS, FIRST_SECONDS * _GROWTH**tries)
                asked = error.retry_after if isinstance(error, Retryable) else None
                await self._desk.nap(max(own, min(asked or 0.0, 10 * LONGEST_SECONDS)))
