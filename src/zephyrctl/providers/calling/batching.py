"""Asking a model on this machine: batches that do not depend on what is already known."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence

from zephyrctl.errors import Locked
from zephyrctl.ledger.entries import Ended, Finished, Intent, Leased, Run, StoredReply
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import BatchProvider, Retryable
from zephyrctl.providers.calling.job import Job, Result

_LOOK_AGAIN = 1.0

Settle = Callable[[Job, Result], None]


def chunks(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """All jobs in batches of `size`, like lengths together; the order of equal lengths is kept."""
    ordered = sorted(jobs, key=lambda job: job.size)
    return [ordered[start : start + size] for start in range(0, len(ordered), max(1, size))]


def run_batches(
    ledger: Ledger,
    run: Run,
    jobs: Sequence[Job],
    *,
    known: Container[str],
    settle: Settle,
    stopped: Callable[[], bool],
    max_wait: float,
) -> None:
    """Settle every job of one local model that is not known.

    What a model computes can depend on which rows stand together in a batch. So the batches are formed over
    all jobs, and one with any member missing is computed whole: a run that was interrupted gives what an
    uninterrupted one gives. Rows that another process computes are waited for, for `max_wait` seconds; then
    Locked is raised.
    """
    provider = jobs[0].provider
    assert isinstance(provider, BatchProvider)
    for chunk in chunks(jobs, provider.max_batch):
        missing = [job for job in chunk if job.key not in known]
        waited = 0.0
        while missing and not stopped():
            begun = dict(
                zip(
                    missing,
                    ledger.begin_many([Intent(j.request, 0) for j in missing], run).result(),
                    strict=True,
                )
            )
            attempts = {job.key: attempt for job, attempt in begun.items() if isinstance(attempt, int)}
            leases = [lease for lease in begun.values() if isinstance(lease, Leased)]
            for job, reply in begun.items():
                if isinstance(reply, StoredReply):
                    settle(job, job.answer(reply, replayed=True))
            if attempts:
                _compute(ledger, provider, chunk, attempts, settle)
            missing = [job for job, lease in begun.items() if isinstance(lease, Leased)]
            if missing and not attempts:
                waited += _LOOK_AGAIN
                if waited > max_wait:
                    raise Locked(
                        f"another process (pid {leases[0].pid} on {leases[0].host}) computes the same rows and does "
                        "not come to an end",
                        hint="wait for that process, or end it; then run the same command again",
                    )
                time.sleep(_LOOK_AGAIN)


def _compute(
    ledger: Ledger,
    provider: BatchProvider,
    chunk: Sequence[Job],
    attempts: Mapping[str, int],
    settle: Settle,
) -> None:
    try:
        raws = provider.send_batch([dict(job.request.body) for job in chunk])
    except BaseException as error:
        ended = [Ended(attempt, "cancelled", type(error).__name__) for attempt in attempts.values()]
        ledger.fail_many(ended).result()
        raise
    fresh: list[tuple[Job, StoredReply]] = []
    for job, raw in zip(chunk, raws, strict=True):
        if job.key not in attempts:
            continue
        try:
            fresh.append((job, job.read(raw)))
        except Retryable as error:
            ledger.fail_many([Ended(attempts[job.key], "error", error.reason)]).result()
            settle(job, job.failure(error.reason, error.detail))
    finished = [Finished(attempts[job.key], job.key, reply, 0) for job, reply in fresh]
    for (job, _), reply in zip(fresh, ledger.finish_many(finished).result(), strict=True):
        settle(job, job.answer(reply, replayed=False))
