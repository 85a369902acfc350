"""Calls of another ledger added to this one: what is missing comes in, what is here stays.

An attempt is known by its request, its owner and its start. One whose end was not known yet takes over what the
other ledger knows by now. The sums of money change in the same transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields

from zephyrctl.ledger.batches import OPEN_STATES
from zephyrctl.ledger.calls import ATTEMPT_COLUMNS, Attempt, Call, Reply
from zephyrctl.ledger.entries import body_text
from zephyrctl.ledger.replies import packed, select
from zephyrctl.ledger.spend import Books

ELSEWHERE = "elsewhere"
"""The host of owners that came in with their attempts: nothing of theirs is in flight here."""
_UNSETTLED = ("inflight", "batched", "in_doubt")
_EXAMPLES = 10
_UPDATED = (
    "state", "ended", "http_status", "request_id", "error_class", "cost_uusd", "prompt_tokens",
    "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens",
)  # fmt: skip


@dataclass
class Taken:
    """What came in: requests looked at, and how many requests, replies and attempts were new.

    `updated` attempts were here without their end. `disagreeing` replies differ from the one that is here, which
    stays; `examples` are the keys of the first ones.
    """

    seen: int = 0
    requests: int = 0
    replies: int = 0
    attempts: int = 0
    updated: int = 0
    disagreeing: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, other: Taken) -> None:
        """Count what another part brought."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))
        del self.examples[_EXAMPLES:]


@dataclass(frozen=True)
class _Known:
    """An attempt that is here."""

    id: int
    state: str
    run_id: str
    reserved: int | None


def absorb(connection: sqlite3.Connection, calls: Sequence[Call], batches: Collection[str] = ()) -> Taken:
    """Add calls that were checked, in the transaction that is open; attempts in one of `batches` stay open where it is
    open here.

    Whatever else was open where they come from is in doubt here.
    """
    taken = Taken(seen=len(calls))
    taken.requests = _requests(connection, calls)
    _runs(connection, calls)
    books = Books(connection)
    query = "SELECT id, state FROM batch WHERE id IN ({})"
    still = {row[0] for row in select(connection, query, list(batches)) if row[1] in OPEN_STATES}
    answered = _attempts(connection, calls, still, books, taken)
    _replies(connection, calls, answered, taken)
    books.save()
    return taken


def _requests(connection: sqlite3.Connection, calls: Sequence[Call]) -> int:
    rows = [
        (c.key, packed(body_text(c.body)), c.provider, c.origin, c.endpoint, c.model, c.draw, c.created)
        for c in calls
    ]
    done = connection.executemany("INSERT OR IGNORE INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    return max(0, done.rowcount)


def _runs(connection: sqlite3.Connection, calls: Sequence[Call]) -> None:
    runs = {run.id: (run.id, run.stage, run.name, run.created) for call in calls for run in call.runs}
    # A run that an old ledger knew by its number alone takes its name from the one that knows it.
    connection.executemany(
        """INSERT INTO run VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE
           SET stage = excluded.stage, name = excluded.name WHERE stage = ''""",
        runs.values(),
    )
    used = sorted((run.id, call.key) for call in calls for run in call.runs if run.uses)
    connection.executemany("INSERT OR IGNORE INTO used VALUES (?, ?)", used)
    owners = {
        one.owner: (one.owner, ELSEWHERE, "", 0, "", one.started, 0) for c in calls for one in c.attempts
    }
    connection.executemany("INSERT OR IGNORE INTO owner VALUES (?, ?, ?, ?, ?, ?, ?)", owners.values())


def _attempts(
    connection: sqlite3.Connection, calls: Sequence[Call], batches: set[str], books: Books, taken: Taken
) -> dict[str, int]:
    """Adds or completes attempts; by key, the number here of the attempt that the reply came from."""
    query = "SELECT key, owner, started, id, state, run_id, reserved_uusd FROM attempt WHERE key IN ({})"
    rows = select(connection, query, [call.key for call in calls])
    known = {row[:3]: _Known(*row[3:]) for row in rows}
    tries = Counter(row[0] for row in rows)
    number = connection.execute("SELECT COALESCE(MAX(id), 0) FROM attempt").fetchone()[0]
    answered: dict[str, int] = {}
    for call in calls:
        for attempt in call.attempts:
            here = known.get((call.key, attempt.owner, attempt.started))
            if here is None:
                number += 1
                here = _Known(number, "", attempt.run_id, attempt.reserved_uusd)
                _insert(connection, call.key, number, tries[call.key], attempt, batches, books)
                tries[call.key] += 1
                taken.attempts += 1
            elif here.state in _UNSETTLED[1:] and attempt.state not in _UNSETTLED:
                _complete(connection, call.key, here, attempt, books)
                taken.updated += 1
            if attempt.answered:
                answered[call.key] = here.id
    return answered


def _insert(
    connection: sqlite3.Connection,
    key: str,
    number: int,
    n: int,
    attempt: Attempt,
    batches: set[str],
    books: Books,
) -> None:
    state = attempt.state
    if state == "inflight" or (state == "batched" and attempt.batch not in batches):
        state = "in_doubt"
    values = {**attempt.model_dump(include=set(ATTEMPT_COLUMNS)), "state": state, "n": n}
    columns = ", ".join(ATTEMPT_COLUMNS)
    marks = ", ".join(f":{name}" for name in ATTEMPT_COLUMNS)
    connection.execute(
        f"INSERT INTO attempt (id, key, {columns}) VALUES (:id, :key, {marks})",
        {**values, "id": number, "key": key},
    )
    if state == "batched":
        books.add(attempt.run_id, reserved=attempt.reserved_uusd or 0)
        connection.execute("INSERT OR IGNORE INTO lease VALUES (?, ?, NULL, ?)", (key, number, attempt.batch))
    else:
        _enter(books, attempt.run_id, state, attempt.cost_uusd, attempt.reserved_uusd)


def _complete(connection: sqlite3.Connection, key: str, here: _Known, attempt: Attempt, books: Books) -> None:
    books.release(here.run_id, here.state, here.reserved or 0)
    _enter(books, here.run_id, attempt.state, attempt.cost_uusd, here.reserved)
    changes = ", ".join(f"{name} = :{name}" for name in _UPDATED)
    values = attempt.model_dump(include=set(_UPDATED))
    connection.execute(f"UPDATE attempt SET {changes} WHERE id = :id", {**values, "id": here.id})
    connection.execute("DELETE FROM lease WHERE key = ? AND attempt = ?", (key, here.id))


def _enter(books: Books, run_id: str, state: str, cost: int | None, reserved: int | None) -> None:
    if state == "ok":
        books.add(run_id, settled=cost or 0)
    elif state in ("timeout", "in_doubt"):
        books.add(run_id, doubt=reserved or 0)


def _replies(
    connection: sqlite3.Connection, calls: Sequence[Call], answered: dict[str, int], taken: Taken
) -> None:
    rows = select(connection, "SELECT key, sha256 FROM response WHERE key IN ({})", [c.key for c in calls])
    here = dict(rows)
    new = []
    for call in calls:
        reply = call.reply
        if reply is None:
            continue
        if call.key not in here:
            new.append(_row(call.key, reply, answered.get(call.key, 0)))
        elif here[call.key] != reply.sha256:
            taken.disagreeing += 1
            taken.examples.append(call.key)
    connection.executemany("INSERT INTO response VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", new)
    taken.replies = len(new)


def _row(key: str, reply: Reply, attempt: int) -> tuple[object, ...]:
    return (
        key,
        packed(reply.body),
        reply.sha256,
        reply.outcome,
        reply.finish_reason,
        json.dumps(reply.usage) if reply.usage is not None else None,
        reply.served_model,
        reply.fingerprint,
        attempt,
    )
