"""Batches of requests that a provider works on for up to a day: begun, followed, found again after a crash."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Sequence

from zephyrctl.errors import IntegrityError
from zephyrctl.ledger.entries import Batch, Begun, Intent

OPEN_STATES = ("building", "open")


def write_batch(
    connection: sqlite3.Connection, batch: Batch, intents: Sequence[Intent], begun: Sequence[Begun]
) -> None:
    """Write a batch that holds the requests which were begun for it; nothing if there are none."""
    keys = [i.request.key for i, there in zip(intents, begun, strict=True) if isinstance(there, int)]
    if not keys:
        return
    keys_hash = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
    connection.execute(
        "INSERT INTO batch VALUES (?, ?, ?, ?, ?, 'building', ?, ?, ?)",
        (
            batch.id,
            batch.provider,
            batch.origin,
            batch.model,
            batch.run_id,
            batch.remote_id,
            keys_hash,
            time.time(),
        ),
    )


def change_batch(
    connection: sqlite3.Connection, batch_id: str, state: str | None, remote_id: str | None
) -> None:
    """Write a batch's new state or its name at the provider. Raises IntegrityError for one that is not here."""
    done = connection.execute(
        "UPDATE batch SET state = COALESCE(?, state), remote_id = COALESCE(?, remote_id) WHERE id = ?",
        (state, remote_id, batch_id),
    )
    if done.rowcount != 1:
        raise IntegrityError(f"the ledger has no batch {batch_id}")


def read_batches(connection: sqlite3.Connection, open_only: bool, with_keys: bool) -> list[Batch]:
    """Batches, oldest first, each with all the keys it was made of where these are wanted."""
    rows = connection.execute(
        """SELECT id, provider, origin, model, run_id, state, remote_id, created FROM batch
           ORDER BY created, id"""
    ).fetchall()
    found = []
    for batch_id, provider, origin, model, run_id, state, remote_id, created in rows:
        if open_only and state not in OPEN_STATES:
            continue
        held: tuple[str, ...] = ()
        if with_keys:
            keys = connection.execute("SELECT key FROM attempt WHERE batch = ? ORDER BY id", (batch_id,))
            held = tuple(row[0] for row in keys)
        found.append(Batch(batch_id, provider, origin, model, run_id, state, held, remote_id, created))
    return found


def read_batched(connection: sqlite3.Connection, batch_id: str) -> dict[str, int]:
    """The attempts of a batch that have not ended, by key."""
    rows = connection.execute(
        "SELECT key, id FROM attempt WHERE batch = ? AND state = 'batched' ORDER BY id", (batch_id,)
    )
    return dict(rows.fetchall())
