"""Asking a model on this machine: batches that do not depend on what is already known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from zephyrctl.ledger.ledger import Ledger, StoredReply
from zephyrctl.providers.base import BatchProvider, Retryable
from zephyrctl.providers.job import Job, Result


def chunks(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """All jobs in batches of `size`, like lengths together; the order of equal lengths is kept."""
    ordered = sorted(jobs, key=lambda job: job.size)
    return [ordered[start : start + size] for start in range(0, len(ordered), max(1, size))]


def run_batches(
    ledger: Ledger,
    run_id: str,
    provider: BatchProvider,
    jobs: Sequence[Job],
    known: Mapping[str, Result],
    settle: Callable[[str, Result], None],
    stopped: Callable[[], bool],
) -> None:
    """Settle every job that is not known.

    What a model computes can depend on which rows stand together in a batch. So the batches are formed over
    all jobs, and one with any member missing is computed whole: a run that was interrupted gives what an
    uninterrupted one gives.
    """
    for chunk in chunks(jobs, provider.max_batch):
        missing = [job for job in chunk if job.key not in known]
        if not missing:
            continue
        if stopped():
            return
        begun = ledger.begin_many([job.request for job in missing], run_id).result()
        # Another process may have stored some by now; those are taken as they are.
        open_jobs = {
            job.key: a for job, a in zip(missing, begun, strict=True) if not isinstance(a, StoredReply)
        }
        for job, reply in zip(missing, begun, strict=True):
            if isinstance(reply, StoredReply):
                settle(job.key, job.answer(reply, replayed=True))
        if open_jobs:
            _compute(ledger, provider, chunk, open_jobs, settle)


def _compute(
    ledger: Ledger,
    provider: BatchProvider,
    chunk: Sequence[Job],
    attempts: Mapping[str, int],
    settle: Callable[[str, Result], None],
) -> None:
    try:
        raws = provider.send_batch([dict(job.request.body) for job in chunk])
    except BaseException as error:
        ledger.fail(list(attempts.values()), "cancelled", type(error).__name__).result()
        raise
    fresh: list[tuple[Job, StoredReply]] = []
    for job, raw in zip(chunk, raws, strict=True):
        if job.key not in attempts:
            continue
        try:
            fresh.append((job, job.read(raw)))
        except Retryable as error:
            ledger.fail([attempts[job.key]], "error", error.reason).result()
            settle(job.key, job.failure(error.reason, error.detail))
    stored = ledger.finish_many([(attempts[job.key], job.key, reply) for job, reply in fresh]).result()
    for (job, _), reply in zip(fresh, stored, strict=True):
        settle(job.key, job.answer(reply, replayed=False))
