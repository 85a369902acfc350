"""The one way to ask a model.

What is in the ledger is replayed, what is not is asked, stored, and only then handed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from zephyrctl.config import canonical
from zephyrctl.errors import Interrupted, UsageError
from zephyrctl.events import Emit, Note, Warning_, silent
from zephyrctl.ledger.ledger import Ledger, Request
from zephyrctl.providers.base import AnyProvider, Ask, BatchProvider
from zephyrctl.providers.batching import run_batches
from zephyrctl.providers.job import Job, Result
from zephyrctl.providers.line import Line
from zephyrctl.providers.online import Limits, Pool, Sleep
from zephyrctl.providers.progress import Meter
from zephyrctl.providers.retry import Retry
from zephyrctl.providers.stopping import Stop


class Caller:
    """Asks models for one step, with bounded concurrency and retries, a deadline per attempt, and counts.

    `concurrency` = calls in flight at most; `deadline` = seconds per attempt; `grace` = seconds for calls in
    flight when a signal asks to stop; `breaker` = failures in a row that mean the provider is down (default:
    3 per worker, at least 8); `sleep` is there for tests.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        emit: Emit = silent,
        concurrency: int = 16,
        run_id: str,
        deadline: float = 120.0,
        retry: Retry | None = None,
        grace: float = 10.0,
        breaker: int | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        if concurrency < 1:
            raise UsageError(f"concurrency must be at least 1, got {concurrency}")
        self._ledger = ledger
        self._emit = emit
        self._run_id = run_id
        self._limits = Limits(concurrency, deadline, retry or Retry(), grace, sleep)
        self._breaker = breaker or max(8, 3 * concurrency)
        self._lines: dict[tuple[str, str, str, str], Line] = {}
        self._recovered = False

    def ask(self, provider: AnyProvider, asks: Sequence[Ask], *, task: str) -> list[Result]:
        """The answers of one model, in the order of the asks; see `ask_all`."""
        return self.ask_all([(provider, ask) for ask in asks], task=task)

    def ask_all(self, pairs: Sequence[tuple[AnyProvider, Ask]], *, task: str) -> list[Result]:
        """The answers of several models, in order; equal requests are sent once.

        A Failure stands where bounded retries gave no reply. Raises AuthError, ProviderDown, UsageError,
        Interrupted and the ledger's errors; what had arrived by then is kept.
        """
        order = [self._job(provider, ask) for provider, ask in pairs]
        jobs: dict[str, Job] = {}
        for job in order:
            jobs.setdefault(job.key, job)
        self._recover()
        meter = Meter(self._emit, task, [job.key for job in order])
        results: dict[str, Result] = {}

        def settle(key: str, result: Result) -> None:
            results[key] = result
            meter.add(key)

        meter.tell()
        for key, reply in self._ledger.known(jobs).items():
            settle(key, jobs[key].answer(reply, replayed=True))
        if len(results) < len(jobs):
            self._run(list(jobs.values()), results, settle)
        return [results[job.key] for job in order]

    def summary(self) -> list[dict[str, Any]]:
        """What a manifest keeps of each model asked.

        Keys: provider, model, origin, served, calls, replayed, prompt_tokens, completion_tokens, retries,
        in_doubt, outcomes, failures. `in_doubt` counts over all processes of this run, the rest this one.
        """
        doubts = self._ledger.in_doubt(self._run_id)
        tallies = [line.tally for line in self._lines.values()]
        return [t.as_dict(in_doubt=doubts.get((t.provider, t.origin, t.model), 0)) for t in tallies]

    def _run(
        self, jobs: list[Job], results: dict[str, Result], settle: Callable[[str, Result], None]
    ) -> None:
        online = [
            job for job in jobs if job.key not in results and not isinstance(job.provider, BatchProvider)
        ]
        local: dict[int, list[Job]] = {}
        for job in jobs:
            if isinstance(job.provider, BatchProvider):
                local.setdefault(id(job.provider), []).append(job)
        with Stop() as stop:
            try:
                if online:
                    asyncio.run(
                        Pool(self._ledger, self._run_id, self._limits, self._emit, settle).run(online, stop)
                    )
                for group in local.values():
                    provider = group[0].provider
                    assert isinstance(provider, BatchProvider)
                    run_batches(
                        self._ledger, self._run_id, provider, group, results, settle, lambda: stop.asked
                    )
            except KeyboardInterrupt:
                raise Interrupted(stop.number or 2) from None
            if stop.number is not None:
                raise Interrupted(stop.number)

    def _job(self, provider: AnyProvider, ask: Ask) -> Job:
        place = (provider.kind, provider.label, provider.origin, provider.endpoint)
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = Line(provider, self._breaker)
            for notice in getattr(provider, "notices", ()):
                self._emit(Note(notice))
        body = provider.wire(ask)
        key = Ledger.key(
            provider=provider.kind,
            origin=provider.origin,
            endpoint=provider.endpoint,
            body=body,
            draw=ask.draw,
        )
        request = Request(
            key, provider.kind, provider.origin, provider.endpoint, provider.label, body, ask.draw
        )
        return Job(provider, line, request, len(canonical(body)))

    def _recover(self) -> None:
        if self._recovered:
            return
        self._recovered = True
        marked = self._ledger.recover()
        if marked:
            self._emit(
                Warning_(
                    f"{marked} calls were in flight when an earlier process died: no reply arrived, they "
                    "may have been billed, and they are asked again where they are needed"
                )
            )
