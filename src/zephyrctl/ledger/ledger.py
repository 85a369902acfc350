"""The ledger: every request, attempt and reply of a store, kept for good, so that a reply is paid for once.

A request is written before it is sent and a reply before it is used; each such write is on disk when its
future resolves. Nothing in here expires, nothing is pickled, and what a reply means is read from its stored
bytes by the provider's parser.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from zephyrctl.config import canonical
from zephyrctl.errors import IntegrityError
from zephyrctl.events import Emit, Warning_, silent
from zephyrctl.ledger.connection import connect, fault, on_network
from zephyrctl.ledger.owner import Owner, is_dead, this_process
from zephyrctl.ledger.writer import Writer

KEY_VERSION = 1
_ZLIB_LEVEL = 3
_LOOKUP = 400

EndState = Literal["error", "timeout", "in_doubt", "cancelled"]

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What is asked, of whom.

    Everything that makes the key, the key itself, and the model's name for people.
    """

    key: str
    provider: str
    origin: str
    endpoint: str
    model: str
    body: Mapping[str, Any]
    draw: int


@dataclass(frozen=True)
class StoredReply:
    """A reply as it arrived. `usage` is (prompt tokens, answer tokens) where the provider told."""

    body: bytes
    outcome: str
    finish_reason: str
    usage: tuple[int, int] | None
    served_model: str


@dataclass(frozen=True)
class Stats:
    """What one run did: attempts by how they ended, and tokens of the replies it received."""

    states: dict[str, int]
    prompt_tokens: int
    completion_tokens: int

    @property
    def calls(self) -> int:
        """Replies received."""
        return self.states.get("ok", 0)

    @property
    def in_doubt(self) -> int:
        """Attempts that may have been billed although no reply arrived."""
        return self.states.get("in_doubt", 0) + self.states.get("timeout", 0)


class Ledger:
    """One file, used by all stages of a store and by several processes at once.

    Made by the first write, not before.
    """

    def __init__(self, path: Path, *, emit: Emit = silent) -> None:
        self.path = path
        self._emit = emit
        self._wal = True
        self._owner = uuid.uuid4().int >> 65
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        self._writer = Writer(path, self._connect)

    @classmethod
    def open(cls, path: Path, *, emit: Emit = silent) -> Ledger:
        """The ledger at `path`, checked if it exists.

        Raises IntegrityError for a damaged file, EnvironmentFault for one that cannot be used or is of a
        newer zephyrctl.
        """
        ledger = cls(path, emit=emit)
        if path.exists():
            ledger._read(lambda connection: None)
        return ledger

    def close(self) -> None:
        """Finish what is queued and let the file go."""
        self._writer.close()
        with self._reading:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def key(*, provider: str, origin: str, endpoint: str, body: Mapping[str, Any], draw: int) -> str:
        """64 hex digits that stand for 'this request, this draw'.

        Keys, time-outs and headers of a call are not in it.
        """
        parts = {
            "key_version": KEY_VERSION,
            "provider": provider,
            "origin": origin,
            "endpoint": endpoint,
            "body": body,
            "draw": draw,
        }
        return hashlib.sha256(canonical(parts).encode("utf-8", "surrogatepass")).hexdigest()

    # --- reading ---

    def known(self, keys: Iterable[str]) -> dict[str, StoredReply]:
        """The replies already here, by key.

        Raises IntegrityError for one whose bytes are not what was stored.
        """
        wanted = list(dict.fromkeys(keys))
        if not wanted or not self.path.exists():
            return {}

        def look(connection: sqlite3.Connection) -> dict[str, StoredReply]:
            found: dict[str, StoredReply] = {}
            for start in range(0, len(wanted), _LOOKUP):
                part = wanted[start : start + _LOOKUP]
                marks = ",".join("?" * len(part))
                found.update(self._replies(connection, f"key IN ({marks})", part))
            return found

        return self._read(look)

    def stats(self, run_id: str) -> Stats:
        """Attempts and tokens of one run, over all processes that worked on it."""
        if not self.path.exists():
            return Stats({}, 0, 0)
        query = """SELECT state, COUNT(*), SUM(prompt_tokens), SUM(completion_tokens)
                   FROM attempt WHERE run_id = ? GROUP BY state"""
        rows = self._read(lambda connection: connection.execute(query, (run_id,)).fetchall())
        return Stats(
            {row[0]: row[1] for row in rows},
            sum(row[2] or 0 for row in rows),
            sum(row[3] or 0 for row in rows),
        )

    def in_doubt(self, run_id: str) -> dict[tuple[str, str, str], int]:
        """Attempts of one run that may have been billed without a reply, by (provider, origin, model)."""
        if not self.path.exists():
            return {}
        query = """
            SELECT r.provider, r.origin, r.model, COUNT(*) FROM attempt a JOIN request r ON r.key = a.key
            WHERE a.run_id = ? AND a.state IN ('in_doubt', 'timeout') GROUP BY 1, 2, 3
        """
        rows = self._read(lambda connection: connection.execute(query, (run_id,)).fetchall())
        return {(row[0], row[1], row[2]): row[3] for row in rows}

    # --- writing ---

    def begin(self, request: Request, run_id: str) -> Future[int | StoredReply]:
        """Write the intent to send.

        Resolves to the attempt's number, or to the reply if another process got it first.
        """
        return self._writer.submit(lambda connection: self._begin(connection, request, run_id))

    def begin_many(self, requests: Sequence[Request], run_id: str) -> Future[list[int | StoredReply]]:
        """`begin` for requests that are sent together, in one transaction."""
        return self._writer.submit(lambda connection: [self._begin(connection, r, run_id) for r in requests])

    def finish(self, attempt: int, key: str, reply: StoredReply) -> Future[StoredReply]:
        """Store a reply.

        Resolves to the reply that holds from now on (an earlier one, if another process was faster).
        """
        return self._writer.submit(lambda connection: self._finish(connection, attempt, key, reply))

    def finish_many(self, replies: Sequence[tuple[int, str, StoredReply]]) -> Future[list[StoredReply]]:
        """`finish` for replies that arrived together, in one transaction."""
        return self._writer.submit(lambda connection: [self._finish(connection, *reply) for reply in replies])

    def fail(
        self,
        attempts: Sequence[int],
        state: EndState,
        error_class: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
    ) -> Future[None]:
        """Write that attempts ended without a reply."""
        values = [(state, time.time(), error_class, status, request_id, attempt) for attempt in attempts]

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                """UPDATE attempt SET state = ?, ended = ?, error_class = ?, http_status = ?, request_id = ?
                   WHERE id = ? AND state = 'inflight'""",
                values,
            )

        return self._writer.submit(work)

    def recover(self) -> int:
        """The number of attempts now marked in doubt: those in flight whose process is gone.

        Their requests stay unanswered and are sent again where they are needed.
        """
        if not self.path.exists():
            return 0
        return self._writer.submit(_recover).result()

    # --- inside ---

    def _connect(self) -> sqlite3.Connection:
        network = on_network(self.path.parent) if self._wal else None
        if network:
            self._wal = False
            self._emit(
                Warning_(
                    f"the ledger {self.path} is on a network file system ({network}): it is kept in the "
                    "slower rollback mode; ZEPHYRCTL_LEDGER can name a place on a local disk"
                )
            )
        return connect(self.path, wal=self._wal)

    def _read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        with self._reading:
            if self._reader is None:
                self._reader = self._connect()
            try:
                return look(self._reader)
            except sqlite3.Error as error:
                raise fault(error, self.path) from None

    def _replies(
        self, connection: sqlite3.Connection, where: str, values: Sequence[object]
    ) -> dict[str, StoredReply]:
        columns = "key, body_z, sha256, outcome, finish_reason, usage, model_returned"
        query = f"SELECT {columns} FROM response WHERE {where}"
        return {row[0]: self._stored(row) for row in connection.execute(query, list(values))}

    def _stored(self, row: tuple[Any, ...]) -> StoredReply:
        key, packed, digest, outcome, finish_reason, usage, served = row
        try:
            body = zlib.decompress(packed)
        except zlib.error:
            body = b""
        if hashlib.sha256(body).hexdigest() != digest:
            raise IntegrityError(
                f"the ledger {self.path} holds a damaged reply (key {key[:16]}…)",
                hint="put a good copy of the ledger in its place, or name another with ZEPHYRCTL_LEDGER",
            )
        counts = json.loads(usage) if usage else None
        return StoredReply(body, outcome, finish_reason, (counts[0], counts[1]) if counts else None, served)

    def _begin(self, connection: sqlite3.Connection, request: Request, run_id: str) -> int | StoredReply:
        there = self._replies(connection, "key = ?", [request.key])
        if there:
            return there[request.key]
        now = time.time()
        _write_owner(connection, self._owner, now)
        body = canonical(request.body).encode("utf-8", "surrogatepass")
        connection.execute(
            "INSERT OR IGNORE INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                request.key,
                zlib.compress(body, _ZLIB_LEVEL),
                request.provider,
                request.origin,
                request.endpoint,
                request.model,
                request.draw,
                now,
            ),
        )
        cursor = connection.execute(
            """INSERT INTO attempt (key, n, run_id, owner, state, started)
               VALUES (?1, (SELECT COUNT(*) FROM attempt WHERE key = ?1), ?2, ?3, 'inflight', ?4)""",
            (request.key, run_id, self._owner, now),
        )
        return int(cursor.lastrowid or 0)

    def _finish(
        self, connection: sqlite3.Connection, attempt: int, key: str, reply: StoredReply
    ) -> StoredReply:
        usage = reply.usage
        cursor = connection.execute(
            "INSERT OR IGNORE INTO response VALUES (?, ?, ?, ?, ?, ?, ?, NULL, ?)",
            (
                key,
                zlib.compress(reply.body, _ZLIB_LEVEL),
                hashlib.sha256(reply.body).hexdigest(),
                reply.outcome,
                reply.finish_reason,
                json.dumps(list(usage)) if usage else None,
                reply.served_model,
                attempt,
            ),
        )
        connection.execute(
            """UPDATE attempt SET state = 'ok', ended = ?, http_status = COALESCE(http_status, 200),
               prompt_tokens = ?, completion_tokens = ? WHERE id = ?""",
            (time.time(), usage[0] if usage else None, usage[1] if usage else None, attempt),
        )
        if cursor.rowcount == 1:
            return reply
        return self._replies(connection, "key = ?", [key])[key]


def _write_owner(connection: sqlite3.Connection, owner_id: int, now: float) -> None:
    owner = this_process()
    connection.execute(
        "INSERT OR IGNORE INTO owner VALUES (?, ?, ?, ?, ?, ?)",
        (owner_id, owner.host, owner.boot_id, owner.pid, owner.started, now),
    )


def _recover(connection: sqlite3.Connection) -> int:
    rows = connection.execute(
        """SELECT id, host, boot_id, pid, process_started FROM owner
           WHERE id IN (SELECT DISTINCT owner FROM attempt WHERE state = 'inflight')"""
    ).fetchall()
    dead = [row[0] for row in rows if is_dead(Owner(*row[1:]))]
    marked = 0
    for owner_id in dead:
        marked += connection.execute(
            "UPDATE attempt SET state = 'in_doubt', ended = ? WHERE owner = ? AND state = 'inflight'",
            (time.time(), owner_id),
        ).rowcount
    return marked
