"""The ledger: every request, attempt and reply of a store, kept for good, so that a reply is paid for once.

A request is written before it is sent and a reply before it is used; each such write is on disk when its
future resolves. Nothing in here expires, nothing is pickled, and what a reply means is read from its stored
bytes by the provider's parser.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from zephyrctl.events import Emit, Warning_, silent
from zephyrctl.ledger.attempts import Attempts, note_run
from zephyrctl.ledger.batches import change_batch, read_batched, read_batches, write_batch
from zephyrctl.ledger.connection import connect, fault, on_network, open_to_read
from zephyrctl.ledger.entries import (
    Batch,
    Begun,
    Budget,
    Ended,
    Finished,
    Intent,
    Recovered,
    Request,
    Run,
    Spend,
    Stats,
    StoredReply,
    body_text,
    key_of,
)
from zephyrctl.ledger.owner import BEAT_SECONDS, Watch, closed, opened
from zephyrctl.ledger.replies import note_used, replies, select, write_requests
from zephyrctl.ledger.schema import migrate
from zephyrctl.ledger.spend import ALL, read_spend, run_scope
from zephyrctl.ledger.writer import Writer

NO_LIMIT = Budget()

T = TypeVar("T")


class Ledger:
    """One file, used by all stages of a store and by several processes at once.

    Made by the first write, not before. An open `Ledger` is one owner of attempts: what it has in flight is
    asked by nobody else, here or in another process, until it ends, the ledger is closed, or its process dies.
    """

    def __init__(self, path: Path, *, emit: Emit = silent) -> None:
        self.path = path
        self._emit = emit
        self._wal = True
        self._owner = uuid.uuid4().int >> 65
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        self._attempts = Attempts(path, self._owner, Watch())
        self._writer = Writer(path, self._connect, pulse=self._beat, every=BEAT_SECONDS)

    @classmethod
    def open(cls, path: Path, *, emit: Emit = silent) -> Ledger:
        """The ledger at `path`, checked if it exists.

        Raises IntegrityError for a damaged file, EnvironmentFault for one that cannot be used or is of a
        newer zephyrctl.
        """
        ledger = cls(path, emit=emit)
        if path.exists():
            ledger.read(lambda connection: None)
        return ledger

    def close(self) -> None:
        """Finish what is queued and let the file go. What is still in flight counts as lost from here on."""
        self._writer.close()
        closed(self._owner)
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
        return key_of(body_text(body), provider=provider, origin=origin, endpoint=endpoint, draw=draw)

    # --- reading ---

    def read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """What `look` finds with an open connection; it only reads, and its rows must not outlive it.

        A ledger that does not exist yet is read as an empty one and not made.

        Raises IntegrityError, EnvironmentFault or Locked instead of SQLite's errors.
        """
        with self._reading:
            try:
                if self._reader is None:
                    if not self.path.exists():
                        return self._empty(look)
                    self._reader = open_to_read(self.path, wal=self._wal_here())
                return look(self._reader)
            except sqlite3.Error as error:
                raise fault(error, self.path) from None

    def known(self, keys: Iterable[str]) -> dict[str, StoredReply]:
        """The replies already here, by key.

        Raises IntegrityError for one whose bytes are not what was stored.
        """
        wanted = list(dict.fromkeys(keys))
        return self.read(lambda connection: replies(connection, wanted, self.path)) if wanted else {}

    def tried(self, keys: Sequence[str]) -> dict[str, int]:
        """How many attempts at each key ended without a reply, in all runs."""
        query = """SELECT key, COUNT(*) FROM attempt WHERE key IN ({})
                   AND state IN ('error', 'timeout', 'in_doubt') GROUP BY key"""
        return self.read(lambda connection: dict(select(connection, query, keys)))

    def stats(self, run_id: str) -> Stats:
        """Attempts and tokens of one run, over all processes that worked on it."""
        query = """SELECT state, COUNT(*), SUM(prompt_tokens), SUM(completion_tokens), SUM(cached_tokens),
                   SUM(reasoning_tokens) FROM attempt WHERE run_id = ? GROUP BY state"""
        rows = self.read(lambda connection: connection.execute(query, (run_id,)).fetchall())
        return Stats(
            {row[0]: row[1] for row in rows}, *(sum(row[i] or 0 for row in rows) for i in range(2, 6))
        )

    def spend(self, run_id: str | None = None) -> Spend:
        """The money of one run over all its processes and restarts, or of the whole ledger."""
        scope = ALL if run_id is None else run_scope(run_id)
        return self.read(lambda connection: read_spend(connection, scope))

    def in_doubt(self, run_id: str) -> dict[tuple[str, str, str], tuple[int, int]]:
        """Attempts of one run that may have been billed without a reply: how many, and the most they may have
        cost in uusd, by (provider, origin, model)."""
        query = """
            SELECT r.provider, r.origin, r.model, COUNT(*), SUM(COALESCE(a.reserved_uusd, 0))
            FROM attempt a JOIN request r ON r.key = a.key
            WHERE a.run_id = ? AND a.state IN ('in_doubt', 'timeout') GROUP BY 1, 2, 3
        """
        rows = self.read(lambda connection: connection.execute(query, (run_id,)).fetchall())
        return {(row[0], row[1], row[2]): (row[3], row[4]) for row in rows}

    def unanswered_doubt(self, run_id: str) -> tuple[int, int]:
        """Attempts of one run that may have been billed and whose requests have no reply to this day: how many,
        and the most they may have cost in uusd."""
        query = """
            SELECT COUNT(*), COALESCE(SUM(reserved_uusd), 0) FROM attempt a
            WHERE run_id = ? AND state IN ('in_doubt', 'timeout')
            AND NOT EXISTS (SELECT 1 FROM response WHERE key = a.key)
        """
        calls, uusd = self.read(lambda connection: connection.execute(query, (run_id,)).fetchone())
        return calls, uusd

    def batches(self, open_only: bool = True, *, keys: bool = True) -> list[Batch]:
        """Batches, oldest first; with `open_only` those that are being built or are at the provider.

        Without `keys` they come without theirs, which can be a hundred thousand each.
        """
        return self.read(lambda connection: read_batches(connection, open_only, keys))

    def batched_attempts(self, batch_id: str) -> dict[str, int]:
        """The attempts of a batch that have not ended, by key."""
        return self.read(lambda connection: read_batched(connection, batch_id))

    # --- writing ---

    def write(self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Run `work` in a durable transaction with others; all of it is written, or nothing.

        The future resolves after the commit. It runs in the writer's thread and holds up all other writes.
        """
        return self._writer.submit(work)

    def begin_many(
        self, intents: Sequence[Intent], run: Run, budget: Budget = NO_LIMIT
    ) -> Future[list[Begun]]:
        """Write the intent to send requests; in the order of `intents`, what came of each.

        An attempt's number: send it now, its most cost is reserved. A reply: another was faster. `Leased` or
        `InBatch`: it is being asked. `NoRoom`: its reservation would cross a limit of `budget`.
        """
        opened(self._owner)
        return self.write(lambda connection: self._attempts.begin(connection, intents, run, budget))

    def finish_many(self, finished: Sequence[Finished]) -> Future[list[StoredReply]]:
        """Store replies and what they cost.

        Resolves to the replies that hold from now on (earlier ones, where another process was faster).
        """
        return self.write(lambda connection: self._attempts.finish(connection, finished))

    def fail_many(self, ended: Sequence[Ended]) -> Future[None]:
        """Write that attempts, in flight or in a batch, ended without a reply.

        What may have been billed (`timeout`, `in_doubt`) keeps counting at its reservation.
        """
        return self.write(lambda connection: _nothing(self._attempts.end(connection, ended)))

    def used(self, run: Run, keys: Iterable[str]) -> Future[None]:
        """Note that a run uses these replies."""
        noted = list(keys)
        if not noted:
            return _resolved(None)

        def work(connection: sqlite3.Connection) -> None:
            note_run(connection, run)
            note_used(connection, run.id, noted)

        return self.write(work)

    def want(self, requests: Sequence[Request], run: Run) -> Future[int]:
        """Write requests down that cannot be sent from here, as wanted by a run; how many were not here yet."""

        def work(connection: sqlite3.Connection) -> int:
            note_run(connection, run)
            note_used(connection, run.id, [request.key for request in requests])
            return write_requests(connection, requests, time.time())

        return self.write(work) if requests else _resolved(0)

    def recover(self) -> Recovered:
        """The attempts now marked in doubt: those in flight whose process is gone.

        Their requests stay unanswered and are sent again where they are needed.
        """
        if not self.read(self._attempts.abandoned):
            return Recovered()
        attempts = self._attempts
        return self.write(lambda c: attempts.end(c, attempts.abandoned(c))).result()

    def begin_batch(
        self, batch: Batch, intents: Sequence[Intent], run: Run, budget: Budget = NO_LIMIT
    ) -> Future[list[Begun]]:
        """`begin_many` for the requests of a batch, which is written too, as `building`.

        The attempts outlive this process: they end by `finish_many` and `fail_many`, from whichever process
        reads the batch's results. A batch of which nothing could be begun is not written.
        """

        def work(connection: sqlite3.Connection) -> list[Begun]:
            begun = self._attempts.begin(connection, intents, run, budget, batch.id)
            write_batch(connection, batch, intents, begun)
            return begun

        return self.write(work)

    def set_batch(
        self, batch_id: str, *, state: str | None = None, remote_id: str | None = None
    ) -> Future[None]:
        """Write a batch's new state, or its name at the provider.

        The future raises IntegrityError for a batch that is not here.
        """
        return self.write(lambda connection: change_batch(connection, batch_id, state, remote_id))

    # --- inside ---

    def _connect(self) -> sqlite3.Connection:
        return connect(self.path, wal=self._wal_here())

    def _wal_here(self) -> bool:
        network = on_network(self.path.parent) if self._wal else None
        if network:
            self._wal = False
            self._emit(
                Warning_(
                    f"the ledger {self.path} is on a network file system ({network}): it is kept in the "
                    "slower rollback mode; ZEPHYRCTL_LEDGER can name a place on a local disk"
                )
            )
        return self._wal

    def _empty(self, look: Callable[[sqlite3.Connection], T]) -> T:
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            migrate(connection, self.path)
            return look(connection)

    def _beat(self, connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE owner SET beat = beat + 1 WHERE id = ?", (self._owner,))


def _nothing(value: object) -> None:
    """Drops a value."""


def _resolved(value: T) -> Future[T]:
    done: Future[T] = Future()
    done.set_result(value)
    return done
