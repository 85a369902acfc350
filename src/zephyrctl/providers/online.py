"""Asking over a network: workers that send, wait, try again, and stop in good order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from zephyrctl.errors import ZephyrError
from zephyrctl.events import Emit, Warning_
from zephyrctl.ledger.ledger import EndState, Ledger, StoredReply
from zephyrctl.providers.base import BatchProvider, Closable, Rejected, Retryable
from zephyrctl.providers.job import Job, Result
from zephyrctl.providers.retry import Retry, share
from zephyrctl.providers.stopping import Stop

Sleep = Callable[[float], Awaitable[None]]
_WORTH_TELLING = 10.0


@dataclass(frozen=True)
class Limits:
    """How calls are bounded: workers, seconds per attempt, tries, seconds of grace when stopping."""

    concurrency: int
    deadline: float
    retry: Retry
    grace: float
    sleep: Sleep


class Pool:
    """Workers that settle jobs.

    A fatal error or a signal stops new calls; those on the wire get the grace to arrive.
    """

    def __init__(
        self, ledger: Ledger, run_id: str, limits: Limits, emit: Emit, settle: Callable[[str, Result], None]
    ) -> None:
        self._ledger = ledger
        self._run_id = run_id
        self._limits = limits
        self._emit = emit
        self._settle = settle
        self._stopping = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._errors: list[Exception] = []
        self._last_words: list[Future[None]] = []

    async def run(self, jobs: Sequence[Job], stop: Stop) -> None:
        """Settle all jobs, or as many as arrive before a stop.

        Raises the first fatal error after the grace.
        """
        loop = asyncio.get_running_loop()
        stop.on_stop = lambda: loop.call_soon_threadsafe(self._stopping.set)
        if stop.asked:
            self._stopping.set()
        queue = iter(jobs)
        count = min(self._limits.concurrency, len(jobs))
        workers = {asyncio.create_task(self._work(queue)) for _ in range(count)}
        watcher = asyncio.create_task(self._stopping.wait())
        try:
            await self._wait(workers, watcher)
        finally:
            stop.on_stop = None
            watcher.cancel()
            for provider in {id(job.provider): job.provider for job in jobs}.values():
                if isinstance(provider, Closable):
                    await provider.aclose()

    async def _wait(self, workers: set[asyncio.Task[None]], watcher: asyncio.Task[bool]) -> None:
        pending = set(workers)
        while pending and not self._stopping.is_set():
            done, _ = await asyncio.wait({*pending, watcher}, return_when=asyncio.FIRST_COMPLETED)
            pending -= done
        if pending:
            for task in pending - self._sending:
                task.cancel()
            _, late = await asyncio.wait(pending, timeout=self._limits.grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            await asyncio.gather(*map(asyncio.wrap_future, self._last_words), return_exceptions=True)
        # A fault of ours must not hide behind an outage that happened at the same time.
        self._errors.sort(key=lambda error: isinstance(error, ZephyrError))
        if self._errors:
            raise self._errors[0]

    async def _work(self, queue: Iterator[Job]) -> None:
        try:
            for job in queue:
                if self._stopping.is_set():
                    return
                result = await self._one(job)
                if result is None:
                    return
                self._settle(job.key, result)
        except Exception as error:
            self._errors.append(error)
            self._stopping.set()

    async def _one(self, job: Job) -> Result | None:
        """The result of a job, None when a stop came first."""
        retry, line = self._limits.retry, job.line
        tries = limited = 0
        waited = 0.0
        while True:
            await self._gate(job, tries + limited)
            try:
                return await self._attempt(job)
            except Rejected as error:
                return job.failure(error.reason, error.detail)
            except Retryable as error:
                line.failed(error)
                if error.reason == "rate_limit":
                    wait = retry.rate_limit(job.key, limited, error.retry_after)
                    limited += 1
                    waited += wait
                    if waited > retry.max_wait:
                        raise line.down(
                            error, f"asks to wait longer than {retry.max_wait:g} s in all"
                        ) from None
                    self._hold(job, wait)
                else:
                    tries += 1
                    if tries >= retry.attempts:
                        line.exhausted(error, tries)
                        return job.failure(error.reason, f"{error.detail} ({tries} attempts)")
                    wait = min(
                        max(retry.backoff(job.key, tries - 1), error.retry_after or 0.0), retry.max_wait
                    )
            if self._stopping.is_set():
                return None
            line.tally.retries += 1
            await self._limits.sleep(wait)

    async def _attempt(self, job: Job) -> Result | None:
        """The result of one call; None where a stop came before it was sent.

        From writing the intent to writing the reply the task counts as sending, and a stop waits for it.
        """
        task = asyncio.current_task()
        assert task is not None
        self._sending.add(task)
        try:
            begun = await asyncio.wrap_future(self._ledger.begin(job.request, self._run_id))
            if isinstance(begun, StoredReply):
                return job.answer(begun, replayed=True)
            if self._stopping.is_set():
                await self._failed(begun, "cancelled", "stopped")
                return None
            reply = await self._send(job, begun)
            stored = await asyncio.wrap_future(self._ledger.finish(begun, job.key, reply))
            return job.answer(stored, replayed=False)
        finally:
            self._sending.discard(task)

    async def _send(self, job: Job, attempt: int) -> StoredReply:
        provider, deadline = job.provider, self._limits.deadline
        assert not isinstance(provider, BatchProvider)
        try:
            try:
                async with asyncio.timeout(deadline):
                    raw = await provider.send(job.request.body)
            except TimeoutError:
                raise Retryable(
                    "timeout", f"no whole reply within {deadline:g} s", maybe_billed=True
                ) from None
            return job.read(raw)
        except Retryable as error:
            state: EndState = (
                "timeout" if error.reason == "timeout" else "in_doubt" if error.maybe_billed else "error"
            )
            await self._failed(attempt, state, error.reason, error.status, error.request_id)
            raise
        except Rejected as error:
            await self._failed(attempt, "error", error.reason, error.status, error.request_id)
            raise
        except asyncio.CancelledError:
            self._last_words.append(self._ledger.fail([attempt], "in_doubt", "stopped"))
            raise
        except Exception as error:
            await self._failed(attempt, "error", type(error).__name__)
            raise

    async def _failed(
        self,
        attempt: int,
        state: EndState,
        why: str,
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        await asyncio.wrap_future(
            self._ledger.fail([attempt], state, why, status=status, request_id=request_id)
        )

    async def _gate(self, job: Job, n: int) -> None:
        remaining = job.line.not_before - asyncio.get_running_loop().time()
        if remaining > 0:
            # Everybody was told to wait; they come back one after the other, not all at one moment.
            await self._limits.sleep(remaining + share(job.key, n) * min(1.0, remaining / 4))

    def _hold(self, job: Job, wait: float) -> None:
        until = asyncio.get_running_loop().time() + wait
        if wait >= _WORTH_TELLING and until > job.line.not_before + _WORTH_TELLING:
            self._emit(Warning_(f"{job.line.model.label} asks to slow down: waiting {wait:.0f} s"))
        job.line.hold(until)
