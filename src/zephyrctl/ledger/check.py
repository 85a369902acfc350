"""Is the ledger whole? Everything in it is read and computed anew; nothing is changed."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.ledger.entries import key_of
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.ledger.spend import ALL

_EXAMPLES = 5


@dataclass
class Finding:
    """Something that is not as it should be: what, how many times, and where first."""

    what: str
    count: int = 0
    where: list[str] = field(default_factory=list)

    def add(self, where: str) -> None:
        """Count one more place."""
        self.count += 1
        if len(self.where) < _EXAMPLES:
            self.where.append(where)


@dataclass
class Verdict:
    """What was looked at, and what was found. Calls in flight and open batches are no faults."""

    requests: int = 0
    replies: int = 0
    attempts: int = 0
    in_flight: int = 0
    open_batches: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "ok": self.whole, "findings": [vars(finding) for finding in self.findings]}


def verify(ledger: Ledger) -> Verdict:
    """Every page, every key, every reply and every sum of the ledger, checked.

    Raises IntegrityError for a file that SQLite cannot open as a ledger.
    """
    return ledger.read(_verify)


def _verify(connection: sqlite3.Connection) -> Verdict:
    verdict = Verdict()
    pages = _pages(connection)
    if pages != ["ok"]:
        # what lies on damaged pages cannot be judged further
        verdict.findings.append(Finding("pages of the file are damaged", len(pages), pages[:_EXAMPLES]))
        return verdict
    connection.execute("BEGIN")
    try:
        verdict.requests = _each(
            connection, verdict, "keys that are not their request's", _REQUESTS, _wrong_key
        )
        verdict.replies = _each(
            connection, verdict, "replies that do not fit their sha256", _REPLIES, _wrong_hash
        )
        for what, query in _MISFITS.items():
            _each(connection, verdict, what, query, lambda row: True)
        _each(
            connection, verdict, "sums of money that are not those of the attempts", _SUMS, lambda row: True
        )
        verdict.attempts = _count(connection, "SELECT COUNT(*) FROM attempt")
        verdict.in_flight = _count(connection, "SELECT COUNT(*) FROM attempt WHERE state = 'inflight'")
        verdict.open_batches = _count(
            connection, "SELECT COUNT(*) FROM batch WHERE state IN ('building', 'open')"
        )
    finally:
        connection.execute("ROLLBACK")
    return verdict


def _pages(connection: sqlite3.Connection) -> list[str]:
    try:
        return [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
    except sqlite3.DatabaseError as error:
        return [str(error)]


def _each(
    connection: sqlite3.Connection,
    verdict: Verdict,
    what: str,
    query: str,
    wrong: Callable[[tuple[Any, ...]], bool],
) -> int:
    """Looks at every row of a query, whose first column says where it is; the number of rows."""
    finding, seen = Finding(what), 0
    for row in connection.execute(query):
        seen += 1
        if wrong(row):
            finding.add(str(row[0]))
    if finding.count:
        verdict.findings.append(finding)
    return seen


_REQUESTS = "SELECT key, body_z, provider, origin, endpoint, draw FROM request ORDER BY key"
_REPLIES = "SELECT key, body_z, sha256 FROM response ORDER BY key"


def _wrong_key(row: tuple[Any, ...]) -> bool:
    key, packed, provider, origin, endpoint, draw = row
    try:
        text = zlib.decompress(packed)
    except zlib.error:
        return True
    return key_of(text, provider=provider, origin=origin, endpoint=endpoint, draw=draw) != str(key)


def _wrong_hash(row: tuple[Any, ...]) -> bool:
    _, packed, digest = row
    try:
        return hashlib.sha256(zlib.decompress(packed)).hexdigest() != str(digest)
    except zlib.error:
        return True


_OPEN = "('inflight', 'batched')"
_MISFITS = {
    "replies without their request": "SELECT key FROM response EXCEPT SELECT key FROM request",
    "attempts without their request": "SELECT key FROM attempt EXCEPT SELECT key FROM request",
    "attempts without their run": "SELECT key FROM attempt WHERE run_id NOT IN (SELECT id FROM run)",
    "attempts without their owner": "SELECT key FROM attempt WHERE owner NOT IN (SELECT id FROM owner)",
    "attempts with a reply that is not there": """
        SELECT key FROM attempt WHERE state = 'ok' EXCEPT SELECT key FROM response""",
    "attempts in a batch that is not there": """
        SELECT key FROM attempt WHERE state = 'batched' AND (batch IS NULL OR batch NOT IN (SELECT id FROM batch))""",
    "attempts that wait for a batch that is over": """
        SELECT a.key FROM attempt a JOIN batch b ON b.id = a.batch
        WHERE a.state = 'batched' AND b.state NOT IN ('building', 'open')""",
    "attempts in a batch that another may ask again": """
        SELECT a.key FROM attempt a LEFT JOIN lease l ON l.key = a.key AND l.attempt = a.id
        WHERE a.state = 'batched' AND l.key IS NULL""",
    "holds on requests that nobody asks": f"""
        SELECT l.key FROM lease l LEFT JOIN attempt a ON a.id = l.attempt AND a.key = l.key
        WHERE a.id IS NULL OR a.state NOT IN {_OPEN}""",
    "requests that a run uses and that are not there": "SELECT key FROM used EXCEPT SELECT key FROM request",
}

_SUMS = f"""
    WITH one AS (
        SELECT run_id,
               CASE WHEN state = 'ok' THEN COALESCE(cost_uusd, 0) ELSE 0 END AS settled,
               CASE WHEN state IN {_OPEN} THEN COALESCE(reserved_uusd, 0) ELSE 0 END AS reserved,
               CASE WHEN state IN ('timeout', 'in_doubt') THEN COALESCE(reserved_uusd, 0) ELSE 0 END AS doubt
        FROM attempt
    ), summed (scope, settled, reserved, doubt) AS (
        SELECT 'run:' || run_id, SUM(settled), SUM(reserved), SUM(doubt) FROM one GROUP BY run_id
        UNION ALL SELECT '{ALL}', SUM(settled), SUM(reserved), SUM(doubt) FROM one HAVING COUNT(*)
    ), told (scope, settled, reserved, doubt) AS (
        SELECT scope, settled_uusd, reserved_uusd, doubt_uusd FROM spend
    )
    SELECT DISTINCT scope FROM (
        SELECT * FROM (SELECT * FROM summed EXCEPT SELECT * FROM told)
        UNION ALL SELECT * FROM (SELECT * FROM told EXCEPT SELECT * FROM summed)
    ) WHERE settled OR reserved OR doubt"""


def _count(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])
