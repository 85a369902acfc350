"""Group commit: one thread writes, and everything that waits at that moment goes into one transaction."""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zephyrctl.ledger.connection import fault

GROUP = 64

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True)
class _Item:
    work: Work
    done: Future[Any]


class Writer:
    """Runs pieces of work in durable transactions.

    A future resolves only after the commit that holds its work. An error of SQLite undoes the whole group, any
    other its own piece alone.

    While one group is on its way to the disk the next one gathers, so many waiting callers share one disk
    flush and a lonely caller waits for nobody. `pulse` is written about every `every` seconds while the writer
    is in use or waits.
    """

    def __init__(
        self,
        path: Path,
        connect: Callable[[], sqlite3.Connection],
        *,
        pulse: Callable[[sqlite3.Connection], None] | None = None,
        every: float = 0.0,
    ) -> None:
        self._path = path
        self._connect = connect
        self._pulse = pulse
        self._every = every
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def submit(self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue work; the future holds its result, or the error that kept the transaction from the disk."""
        done: Future[T] = Future()
        # Queued under the lock: nothing may come after the end that `close` queues.
        with self._starting:
            if self._thread is None:
                self._queue = queue.SimpleQueue()
                self._thread = threading.Thread(
                    target=self._run, args=(self._queue,), name="ledger-writer", daemon=True
                )
                self._thread.start()
            self._queue.put(_Item(work, done))
        return done

    def close(self) -> None:
        """Write what is queued, then end the thread."""
        with self._starting:
            thread, self._thread = self._thread, None
            self._queue.put(None)
        if thread is not None:
            thread.join()

    def _run(self, waiting: queue.SimpleQueue[_Item | None]) -> None:
        connection: sqlite3.Connection | None = None
        beaten = time.monotonic()
        last = False
        while not last:
            group, last = self._gather(waiting)
            if self._pulse is not None and time.monotonic() - beaten >= self._every:
                beaten = time.monotonic()
                group.append(_Item(self._pulse, Future()))
            try:
                connection = connection or self._connect()
                outcomes = self._commit(connection, group)
            except Exception as error:
                fatal = fault(error, self._path) if isinstance(error, sqlite3.Error) else error
                outcomes = [fatal] * len(group)
            for item, outcome in zip(group, outcomes, strict=True):
                # A caller that gave up waiting changes nothing: its reply is written all the same.
                if not item.done.set_running_or_notify_cancel():
                    continue
                if isinstance(outcome, Exception):
                    item.done.set_exception(outcome)
                else:
                    item.done.set_result(outcome)
        if connection is not None:
            connection.close()

    def _gather(self, waiting: queue.SimpleQueue[_Item | None]) -> tuple[list[_Item], bool]:
        """What waits now; an empty group when nothing came for as long as a pulse may wait."""
        group: list[_Item] = []
        try:
            first = waiting.get(timeout=self._every if self._pulse else None)
            while first is not None:
                group.append(first)
                if len(group) >= GROUP:
                    return group, False
                first = waiting.get_nowait()
        except queue.Empty:
            return group, False
        return group, True

    def _commit(self, connection: sqlite3.Connection, group: list[_Item]) -> list[Any]:
        if not group:
            return []
        outcomes: list[Any] = []
        connection.execute("BEGIN IMMEDIATE")
        try:
            for item in group:
                connection.execute("SAVEPOINT item")
                try:
                    outcomes.append(item.work(connection))
                except sqlite3.Error:
                    raise
                except Exception as error:
                    # It concerns this item alone; the others of the group are written.
                    connection.execute("ROLLBACK TO item")
                    outcomes.append(error)
                connection.execute("RELEASE item")
            connection.execute("COMMIT")
        except BaseException:
            # An error that SQLite cannot go on after has ended the transaction already.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        return outcomes
