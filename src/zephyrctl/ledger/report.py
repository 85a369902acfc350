"""What the ledger tells people: money by model, step, provider and day, and single calls in full.

Amounts are millionths of a US dollar (uusd). What has no known price is told as unknown, never as free.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import UUSD

By = Literal["model", "step", "provider", "day"]
SHORTEST_KEY = 6
_LISTED = 12

_GROUPS: dict[By, str] = {
    "model": "r.model",
    "step": "a.run_id",
    "provider": "r.provider || ' ' || r.origin",
    "day": "date(a.started, 'unixepoch')",
}


@dataclass(frozen=True)
class Scope:
    """Which calls: all of them (`runs` None), or those whose replies these runs made or used."""

    runs: tuple[str, ...] | None = None

    def condition(self, column: str) -> tuple[str, list[str]]:
        """A condition on a column that holds keys, and its values."""
        if self.runs is None:
            return "1", []
        marks = ",".join("?" * len(self.runs))
        of_runs = (
            f"{column} IN (SELECT key FROM used WHERE run_id IN ({marks})"
            f" UNION SELECT key FROM attempt WHERE run_id IN ({marks}))"
        )
        return of_runs, [*self.runs, *self.runs]


EVERYTHING = Scope()


@dataclass(frozen=True)
class Cost:
    """Calls and money of one group.

    `unpriced` replies and `doubt_unpriced` calls have no known price and are in no sum. `open` calls are in flight
    or in a batch, with `reserved_uusd` held back for them.
    """

    group: str
    calls: int = 0
    replies: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    paid_uusd: int = 0
    unpriced: int = 0
    doubt: int = 0
    doubt_uusd: int = 0
    doubt_unpriced: int = 0
    open: int = 0
    reserved_uusd: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Cost) -> Cost:
        summed: dict[str, Any] = {
            name: getattr(self, name) + getattr(other, name)
            for name in Cost.__dataclass_fields__
            if name not in ("group", "outcomes")
        }
        summed["outcomes"] = dict(sorted((Counter(self.outcomes) + Counter(other.outcomes)).items()))
        return replace(self, **summed)

    def document(self) -> dict[str, Any]:
        """JSON-ready; money in US dollars, null where no part of it is known."""
        return {
            "group": self.group,
            "calls": self.calls,
            "replies": self.replies,
            "outcomes": self.outcomes,
            "tokens": {
                "prompt": self.prompt_tokens,
                "cached": self.cached_tokens,
                "completion": self.completion_tokens,
                "reasoning": self.reasoning_tokens,
            },
            "paid_usd": _usd(self.paid_uusd, self.replies, self.unpriced),
            "replies_without_price": self.unpriced,
            "in_doubt": {
                "calls": self.doubt,
                "usd": _usd(self.doubt_uusd, self.doubt, self.doubt_unpriced),
                "without_price": self.doubt_unpriced,
            },
            "open": {"calls": self.open, "reserved_usd": self.reserved_uusd / UUSD},
        }


def _usd(uusd: int, calls: int, unpriced: int) -> float | None:
    return None if calls and calls == unpriced else uusd / UUSD


def costs(ledger: Ledger, by: By, scope: Scope = EVERYTHING) -> list[Cost]:
    """One entry a group, dearest first (days: newest first). Steps are `stage name (run id)`."""
    return ledger.read(lambda connection: _costs(connection, by, scope))


def total(found: Sequence[Cost]) -> Cost:
    """The sum over all groups."""
    return sum(found, Cost("all"))


def _costs(connection: sqlite3.Connection, by: By, scope: Scope) -> list[Cost]:
    condition, values = scope.condition("a.key")
    source = f"FROM attempt a JOIN request r ON r.key = a.key WHERE {condition} GROUP BY 1"
    query = f"""
        SELECT {_GROUPS[by]}, COUNT(*), SUM(a.state = 'ok'),
               SUM(COALESCE(a.prompt_tokens, 0)), SUM(COALESCE(a.cached_tokens, 0)),
               SUM(COALESCE(a.completion_tokens, 0)), SUM(COALESCE(a.reasoning_tokens, 0)),
               SUM(CASE WHEN a.state = 'ok' THEN COALESCE(a.cost_uusd, 0) ELSE 0 END),
               SUM(a.state = 'ok' AND a.cost_uusd IS NULL),
               SUM(a.state IN ('in_doubt', 'timeout')),
               SUM(CASE WHEN a.state IN ('in_doubt', 'timeout') THEN COALESCE(a.reserved_uusd, 0) ELSE 0 END),
               SUM(a.state IN ('in_doubt', 'timeout') AND a.reserved_uusd IS NULL),
               SUM(a.state IN ('inflight', 'batched')),
               SUM(CASE WHEN a.state IN ('inflight', 'batched') THEN COALESCE(a.reserved_uusd, 0) ELSE 0 END)
        {source}"""
    outcomes = _outcomes(connection, by, scope)
    names = _step_names(connection) if by == "step" else {}
    found = [
        replace(Cost(names.get(row[0], str(row[0])), *row[1:]), outcomes=outcomes.get(row[0], {}))
        for row in connection.execute(query, values)
    ]
    if by == "day":
        return sorted(found, key=lambda cost: cost.group, reverse=True)
    return sorted(found, key=lambda cost: (-cost.paid_uusd, -cost.doubt_uusd, -cost.calls, cost.group))


def _outcomes(connection: sqlite3.Connection, by: By, scope: Scope) -> dict[str, dict[str, int]]:
    condition, values = scope.condition("a.key")
    query = f"""
        SELECT {_GROUPS[by]}, x.outcome, COUNT(*)
        FROM response x JOIN attempt a ON a.id = x.attempt_id JOIN request r ON r.key = a.key
        WHERE {condition} GROUP BY 1, 2 ORDER BY 1, 2"""
    found: dict[str, dict[str, int]] = {}
    for group, outcome, count in connection.execute(query, values):
        found.setdefault(group, {})[outcome] = count
    return found


def _step_names(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute("SELECT id, stage, name FROM run").fetchall()
    return {row[0]: " ".join(part for part in (row[1], row[2], f"({row[0]})") if part) for row in rows}


def has_calls(ledger: Ledger, scope: Scope) -> bool:
    """Whether the ledger holds any call of `scope`."""
    condition, values = scope.condition("key")
    query = f"SELECT 1 FROM request WHERE {condition} LIMIT 1"
    return ledger.read(lambda connection: connection.execute(query, values).fetchone()) is not None


@dataclass(frozen=True)
class Filter:
    """Which calls to list. `model` matches a part of the model's name; `state` `waiting` = written down, not sent."""

    model: str | None = None
    outcome: str | None = None
    state: str | None = None
    scope: Scope = EVERYTHING


@dataclass(frozen=True)
class Line:
    """One call as the listing shows it: an attempt, or a request that waits for one (`state` waiting)."""

    key: str
    model: str
    step: str
    state: str
    outcome: str
    started: float
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_uusd: int | None
    error: str


def newest(ledger: Ledger, wanted: Filter, count: int) -> list[Line]:
    """The `count` newest calls that fit, newest first."""
    condition, values = wanted.scope.condition("r.key")
    conditions, parameters = [condition], list(values)
    if wanted.model is not None:
        conditions.append("instr(lower(r.model), ?)")
        parameters.append(wanted.model.lower())
    if wanted.outcome is not None:
        conditions.append("x.outcome = ?")
        parameters.append(wanted.outcome)
    if wanted.state == "waiting":
        conditions.append("a.id IS NULL AND x.key IS NULL")
    elif wanted.state is not None:
        conditions.append("a.state = ?")
        parameters.append(wanted.state)
    join, order = ("LEFT JOIN", "r.created") if wanted.state == "waiting" else ("JOIN", "a.id")
    query = f"""
        SELECT r.key, r.model, COALESCE(a.run_id, ''), COALESCE(a.state, 'waiting'), COALESCE(x.outcome, ''),
               COALESCE(a.started, r.created), a.prompt_tokens, a.completion_tokens, a.cost_uusd,
               COALESCE(a.error_class, '')
        FROM request r {join} attempt a ON a.key = r.key
        LEFT JOIN response x ON x.key = r.key AND (a.id IS NULL OR x.attempt_id = a.id)
        WHERE {" AND ".join(conditions)} ORDER BY {order} DESC LIMIT ?"""

    def look(connection: sqlite3.Connection) -> list[Line]:
        names = _step_names(connection)
        rows = connection.execute(query, [*parameters, count]).fetchall()
        return [Line(row[0], row[1], names.get(row[2], row[2]), *row[3:]) for row in rows]

    return ledger.read(look)


def find_key(ledger: Ledger, prefix: str) -> str:
    """The one key that begins with `prefix` (at least 6 hex digits).

    Raises UsageError for what is no beginning of a key, and listing the keys where several fit; RefNotFound.
    """
    text = prefix.lower()
    if not SHORTEST_KEY <= len(text) <= 64 or set(text) - set("0123456789abcdef"):
        raise UsageError(
            f"'{prefix}' is not the beginning of a key", hint=f"give {SHORTEST_KEY} to 64 hex digits"
        )
    query = "SELECT key, model FROM request WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
    found = ledger.read(lambda c: c.execute(query, (text, text + "g", _LISTED + 1)).fetchall())
    if not found:
        raise RefNotFound(
            f"the ledger {ledger.path} has no key {text}…", hint="zephyrctl ledger show lists calls"
        )
    if len(found) > 1:
        listed = "\n".join(f"  {key}  {model}" for key, model in found[:_LISTED])
        more = "\n  …" if len(found) > _LISTED else ""
        raise UsageError(f"several keys begin with {text}:\n{listed}{more}", hint="give more digits")
    return str(found[0][0])


def call(ledger: Ledger, key: str) -> dict[str, Any]:
    """One request in full, JSON-ready: what was asked, every attempt, the reply as it arrived, the steps that use it.

    Raises RefNotFound.
    """
    return ledger.read(lambda connection: _call(connection, key))


def _call(connection: sqlite3.Connection, key: str) -> dict[str, Any]:
    row = connection.execute(
        "SELECT provider, origin, endpoint, model, draw, created, body_z FROM request WHERE key = ?", (key,)
    ).fetchone()
    if row is None:
        raise RefNotFound(f"the ledger has no key {key}")
    names = _step_names(connection)
    columns = (
        "id", "n", "run_id", "state", "started", "ended", "http_status", "request_id", "error_class",
        "reserved_uusd", "cost_uusd", "prompt_tokens", "cached_tokens", "cache_write_tokens",
        "completion_tokens", "reasoning_tokens", "batch",
    )  # fmt: skip
    attempts = [
        dict(zip(columns, values, strict=True))
        for values in connection.execute(
            f"SELECT {', '.join(columns)} FROM attempt WHERE key = ? ORDER BY id", (key,)
        )
    ]
    using = "SELECT id FROM run WHERE EXISTS (SELECT 1 FROM used WHERE run_id = run.id AND key = ?)"
    used = [names.get(run, run) for (run,) in connection.execute(using, (key,))]
    body = json.loads(zlib.decompress(row[6]).decode("utf-8", "surrogatepass"))
    return {
        "key": key,
        **dict(zip(("provider", "origin", "endpoint", "model", "draw", "created"), row, strict=False)),
        "body": body,
        "attempts": [{**one, "step": names.get(one["run_id"], one["run_id"])} for one in attempts],
        "used_by": sorted(used),
        "reply": _reply(connection, key),
    }


def _reply(connection: sqlite3.Connection, key: str) -> dict[str, Any] | None:
    row = connection.execute(
        """SELECT body_z, sha256, outcome, finish_reason, usage, model_returned, fingerprint, attempt_id
           FROM response WHERE key = ?""",
        (key,),
    ).fetchone()
    if row is None:
        return None
    raw = zlib.decompress(row[0])
    try:
        body: Any = json.loads(raw)
    except ValueError:
        body = raw.decode("utf-8", "replace")
    names = ("sha256", "outcome", "finish_reason", "usage", "served_model", "fingerprint", "attempt")
    told = dict(zip(names, row[1:], strict=True))
    return {**told, "usage": json.loads(row[4]) if row[4] else None, "body": body}
