"""The life of attempts: begun under a lease and a reservation, ended by a reply or without one.

Each function here is a part of one transaction: it reads first, and writes rows, leases and sums together.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from zephyrctl.errors import IntegrityError, UsageError
from zephyrctl.ledger.batches import OPEN_STATES
from zephyrctl.ledger.entries import (
    Begun,
    Budget,
    Ended,
    Finished,
    InBatch,
    Intent,
    Leased,
    Recovered,
    Run,
    StoredReply,
)
from zephyrctl.ledger.owner import Owner, Watch, this_process
from zephyrctl.ledger.replies import (
    note_used,
    replies,
    select,
    usage_row,
    write_replies,
    write_requests,
)
from zephyrctl.ledger.spend import Books

GONE = "process_gone"
"""The error class of attempts whose process ended before they did."""
OVER = "batch_over"
"""The error class of attempts whose batch was closed, or is not there, before they ended."""
_DOUBTFUL = ("timeout", "in_doubt")
_OPEN = ("inflight", "batched")


class Attempts:
    """What one owner does with attempts. `path` names the ledger in messages, `watch` judges other owners."""

    def __init__(self, path: Path, owner: int, watch: Watch) -> None:
        self._path = path
        self._owner = owner
        self._watch = watch

    def begin(
        self,
        connection: sqlite3.Connection,
        intents: Sequence[Intent],
        run: Run,
        budget: Budget,
        batch: str | None = None,
    ) -> list[Begun]:
        """Begin what is neither answered nor being asked and fits the budget; for each intent what came of it.

        With `batch`, attempts belong to that batch and not to this process.

        Raises IntegrityError for a damaged reply, UsageError for an intent without a price under a limit.
        """
        _check_priced(intents, budget)
        keys = [intent.request.key for intent in intents]
        known = replies(connection, keys, self._path)
        busy = self._busy(connection, [key for key in keys if key not in known])
        books = Books(connection)
        number = connection.execute("SELECT COALESCE(MAX(id), 0) FROM attempt").fetchone()[0]
        me = this_process()
        begun: list[Begun] = []
        fresh: list[tuple[int, Intent]] = []
        for key, intent in zip(keys, intents, strict=True):
            need = intent.reserve or 0
            there: Begun | None = known.get(key) or busy.get(key)
            if there is None:
                there = books.refusal(run.id, need, budget)
            if there is None:
                number += 1
                there = number
                fresh.append((number, intent))
                books.add(run.id, reserved=need)
                busy[key] = InBatch(key, batch) if batch else Leased(key, me.host, me.pid)
            begun.append(there)
        if fresh or known:
            self._write(connection, fresh, run, batch)
            note_used(connection, run.id, known)
        if fresh:
            books.save()
        return begun

    def finish(self, connection: sqlite3.Connection, finished: Sequence[Finished]) -> list[StoredReply]:
        """Store replies; for each the one that holds from now on. An attempt that has one already is left alone.

        Raises IntegrityError for an attempt that was never begun, or a damaged earlier reply.
        """
        held = replies(connection, {item.key for item in finished}, self._path)
        rows = self._rows(connection, [item.attempt for item in finished])
        books = Books(connection)
        now = time.time()
        first: list[Finished] = []
        updates, drops = [], []
        used: dict[str, set[str]] = {}
        for item in finished:
            key, run_id, state, reserved = rows.get(item.attempt, ("", "", "", 0))
            if key != item.key:
                raise IntegrityError(
                    f"the ledger {self._path} has no attempt {item.attempt} for key {item.key[:16]}…"
                )
            if key not in held:
                held[key] = item.reply
                first.append(item)
            if state == "ok":
                continue
            rows[item.attempt] = (key, run_id, "ok", reserved)
            cost = reserved if item.cost is None else item.cost
            books.release(run_id, state, reserved or 0)
            books.add(run_id, settled=cost or 0)
            updates.append((now, item.request_id, cost, *usage_row(item.reply.tokens), item.attempt))
            drops.append((key, item.attempt))
            used.setdefault(run_id, set()).add(key)
        write_replies(connection, first)
        connection.executemany(
            """UPDATE attempt SET state = 'ok', ended = ?, http_status = 200, error_class = NULL,
               request_id = COALESCE(?, request_id), cost_uusd = ?, prompt_tokens = ?, completion_tokens = ?,
               cached_tokens = ?, cache_write_tokens = ?, reasoning_tokens = ? WHERE id = ?""",
            updates,
        )
        _drop_leases(connection, drops)
        for run_id, keys in used.items():
            note_used(connection, run_id, keys)
        books.save()
        return [held[item.key] for item in finished]

    def end(self, connection: sqlite3.Connection, ended: Sequence[Ended]) -> Recovered:
        """End open attempts without a reply; those that are in doubt now and what they may have cost.

        Attempts that ended before are left alone.
        """
        rows = self._rows(connection, [item.attempt for item in ended])
        books = Books(connection)
        now = time.time()
        updates, drops = [], []
        calls = doubt = 0
        for item in ended:
            key, run_id, state, reserved = rows.pop(item.attempt, ("", "", "", 0))
            drops.append((key, item.attempt))
            if state not in _OPEN:
                continue
            amount = reserved or 0
            books.release(run_id, state, amount)
            if item.state in _DOUBTFUL:
                books.add(run_id, doubt=amount)
                calls, doubt = calls + 1, doubt + amount
            updates.append((item.state, now, item.error_class, item.status, item.request_id, item.attempt))
        connection.executemany(
            """UPDATE attempt SET state = ?, ended = ?, error_class = ?, http_status = ?, request_id = ?
               WHERE id = ?""",
            updates,
        )
        _drop_leases(connection, drops)
        books.save()
        return Recovered(calls, doubt)

    def abandoned(self, connection: sqlite3.Connection) -> list[Ended]:
        """The attempts in flight whose process is gone, and those that wait for a batch which is over, as they are to
        end. What is in an open batch is not in flight."""
        owners = connection.execute(
            """SELECT id, host, boot_id, pid, process_started, beat FROM owner
               WHERE id IN (SELECT owner FROM lease)"""
        ).fetchall()
        gone = [row[0] for row in owners if self._watch.gone(row[0], Owner(*row[1:5]), row[5])]
        rows = select(connection, "SELECT attempt FROM lease WHERE owner IN ({})", gone)
        left = connection.execute(
            f"""SELECT attempt FROM lease WHERE batch IS NOT NULL
                AND batch NOT IN (SELECT id FROM batch WHERE state IN {OPEN_STATES})"""
        ).fetchall()
        return [Ended(row[0], "in_doubt", GONE) for row in rows] + [
            Ended(row[0], "in_doubt", OVER) for row in left
        ]

    def _busy(self, connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, Leased | InBatch]:
        """Who asks these keys now. Leases of owners that are gone, and of batches that are not open, are taken over:
        their attempts end in doubt."""
        query = """SELECT l.key, l.attempt, l.batch, b.state, o.id, o.host, o.boot_id, o.pid, o.process_started,
                   o.beat FROM lease l LEFT JOIN owner o ON o.id = l.owner LEFT JOIN batch b ON b.id = l.batch
                   WHERE l.key IN ({})"""
        busy: dict[str, Leased | InBatch] = {}
        gone = []
        for key, attempt, batch, batch_state, owner_id, host, boot_id, pid, started, beat in select(
            connection, query, keys
        ):
            if batch is not None and batch_state in OPEN_STATES:
                busy[key] = InBatch(key, batch)
            elif batch is not None:
                gone.append(Ended(attempt, "in_doubt", OVER))
            elif self._watch.gone(owner_id, Owner(host, boot_id, pid, started), beat):
                gone.append(Ended(attempt, "in_doubt", GONE))
            else:
                busy[key] = Leased(key, host, pid)
        if gone:
            self.end(connection, gone)
        return busy

    def _rows(
        self, connection: sqlite3.Connection, attempts: Sequence[int]
    ) -> dict[int, tuple[str, str, str, int | None]]:
        query = "SELECT id, key, run_id, state, reserved_uusd FROM attempt WHERE id IN ({})"
        return {row[0]: row[1:] for row in select(connection, query, attempts)}

    def _write(
        self,
        connection: sqlite3.Connection,
        fresh: Sequence[tuple[int, Intent]],
        run: Run,
        batch: str | None,
    ) -> None:
        now = time.time()
        note_run(connection, run)
        if not fresh:
            return
        me = this_process()
        connection.execute(
            "INSERT OR IGNORE INTO owner VALUES (?, ?, ?, ?, ?, ?, 0)",
            (self._owner, me.host, me.boot_id, me.pid, me.started, now),
        )
        write_requests(connection, [intent.request for _, intent in fresh], now)
        state = "batched" if batch else "inflight"
        connection.executemany(
            """INSERT INTO attempt (id, key, n, run_id, owner, state, started, reserved_uusd, batch)
               VALUES (?1, ?2, (SELECT COUNT(*) FROM attempt WHERE key = ?2), ?3, ?4, ?5, ?6, ?7, ?8)""",
            [(n, i.request.key, run.id, self._owner, state, now, i.reserve, batch) for n, i in fresh],
        )
        holder = None if batch else self._owner
        connection.executemany(
            "INSERT INTO lease VALUES (?, ?, ?, ?)", [(i.request.key, n, holder, batch) for n, i in fresh]
        )


def note_run(connection: sqlite3.Connection, run: Run) -> None:
    """Write what a run is, once."""
    connection.execute(
        "INSERT OR IGNORE INTO run VALUES (?, ?, ?, ?)", (run.id, run.stage, run.name, time.time())
    )


def _drop_leases(connection: sqlite3.Connection, drops: Sequence[tuple[str, int]]) -> None:
    connection.executemany("DELETE FROM lease WHERE key = ? AND attempt = ?", drops)


def _check_priced(intents: Sequence[Intent], budget: Budget) -> None:
    unpriced = [intent for intent in intents if intent.reserve is None] if budget.limited else []
    if unpriced:
        raise UsageError(
            f"the price of {unpriced[0].request.model} is not known, so the limit on spending cannot be kept",
            hint="give it with --price in=…,out=… (US dollars per million tokens), or leave the limit out",
        )
