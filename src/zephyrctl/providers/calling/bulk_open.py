"""Batches that an earlier process, or another one, began: which of them concern us, and whether they were handed in.

A batch is written down before it is handed in, so a crash in between leaves one without the provider's name. The
provider is asked about it before anything is handed in again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container
from dataclasses import replace
from functools import partial

from zephyrctl.ledger.entries import Batch, Ended
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.ledger.owner import Owner, Watch, this_process
from zephyrctl.providers.base import Batching

LOOK_SECONDS = 10.0
"""Between two looks for a batch; a provider may take that long to list one that it has just taken."""
ABANDONED_SECONDS = 3600.0
"""Longer than any process can be handing a batch in."""
HANDING_IN: set[str] = set()
"""The batches that this process is handing in at this moment."""

Find = Callable[[Callable[[], Awaitable[str | None]]], Awaitable[str | None]]
Nap = Callable[[float], Awaitable[None]]


def concerning(ledger: Ledger, keys: Container[str]) -> list[Batch]:
    """The open batches that hold any of these keys."""
    return [batch for batch in ledger.batches() if any(key in keys for key in batch.keys)]


def other_names(ledger: Ledger) -> set[str]:
    """The provider's names of all batches whose names are known, closed ones too."""
    return {
        batch.remote_id
        for batch in ledger.batches(open_only=False, keys=False)
        if batch.remote_id is not None
    }


async def named(ledger: Ledger, provider: Batching, batch: Batch, find: Find, nap: Nap) -> Batch | None:
    """An open batch with the provider's name for it, which is noted.

    None where it is closed; one that was never handed in is closed here. One that a living process is handing in is
    waited for. `find` runs a search until it gives an answer.
    """
    watch, waited, looks = Watch(), 0.0, 0
    while True:
        now = next((b for b in ledger.batches(keys=False) if b.id == batch.id), None)
        if now is None:
            return None
        if now.remote_id is not None:
            return replace(batch, state=now.state, remote_id=now.remote_id)
        # asked first: a process that is gone by now hands nothing in after the search
        busy = _being_handed_in(ledger, batch.id, watch) and waited < ABANDONED_SECONDS
        others = other_names(ledger)
        remote_id = await find(partial(provider.batch_find, batch.id, batch.keys, others))
        if remote_id is not None:
            await asyncio.wrap_future(ledger.set_batch(batch.id, state="open", remote_id=remote_id))
            return replace(batch, state="open", remote_id=remote_id)
        looks = 0 if busy else looks + 1
        if looks == 2:
            await close(ledger, batch, "not_handed_in", sent=False)
            return None
        await nap(LOOK_SECONDS)
        waited += LOOK_SECONDS


async def close(ledger: Ledger, batch: Batch, why: str, *, charged: bool = False, sent: bool = True) -> None:
    """End a batch that gives nothing, and all its attempts: cancelled where it was never `sent`, in doubt where it
    may have been `charged`."""
    attempts = ledger.batched_attempts(batch.id)
    state = "in_doubt" if charged else "error" if sent else "cancelled"
    ended = [Ended(attempt, state, why) for attempt in attempts.values()]  # type: ignore[arg-type]
    if ended:
        await asyncio.wrap_future(ledger.fail_many(ended))
    await asyncio.wrap_future(ledger.set_batch(batch.id, state="failed"))


def _being_handed_in(ledger: Ledger, batch_id: str, watch: Watch) -> bool:
    """Whether a process that still lives began this batch, and is not done with handing it in."""
    query = """
        SELECT id, host, boot_id, pid, process_started, beat FROM owner
        WHERE id = (SELECT owner FROM attempt WHERE batch = ? LIMIT 1)
    """

    row = ledger.read(lambda connection: connection.execute(query, (batch_id,)).fetchone())
    if row is None:
        return False
    owner = Owner(*row[1:5])
    if owner == this_process():
        return batch_id in HANDING_IN
    return not watch.gone(row[0], owner, row[5])
