"""Group commit: one thread writes, and everything that waits at that moment goes into one transaction."""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zephyrctl.errors import ZephyrError
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

    A future resolves only after the commit that holds its work.

    While one group is on its way to the disk the next one gathers, so many waiting callers share one disk
    flush and a lonely caller waits for nobody.
    """

    def __init__(self, path: Path, connect: Callable[[], sqlite3.Connection]) -> None:
        self._path = path
        self._connect = connect
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self.commits = 0

    def submit(self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue work; the future holds its result, or the error that kept the transaction from the disk."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
                self._thread.start()
        done: Future[T] = Future()
        self._queue.put(_Item(work, done))
        return done

    def close(self) -> None:
        """Write what is queued, then end the thread."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        while True:
            group, last = self._gather()
            try:
                connection = connection or self._connect()
                outcomes = self._commit(connection, group)
            except Exception as error:
                outcomes = [fault(error, self._path) if isinstance(error, sqlite3.Error) else error] * len(
                    group
                )
            for item, outcome in zip(group, outcomes, strict=True):
                # A caller that gave up waiting changes nothing: its reply is written all the same.
                if not item.done.set_running_or_notify_cancel():
                    continue
                if isinstance(outcome, Exception):
                    item.done.set_exception(outcome)
                else:
                    item.done.set_result(outcome)
            if last:
                break
        if connection is not None:
            connection.close()

    def _gather(self) -> tuple[list[_Item], bool]:
        first = self._queue.get()
        group: list[_Item] = []
        while first is not None:
            group.append(first)
            if len(group) >= GROUP:
                return group, False
            try:
                first = self._queue.get_nowait()
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
                try:
                    outcomes.append(item.work(connection))
                except ZephyrError as error:
                    # It concerns this item alone; the others of the group are written.
                    outcomes.append(error)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self.commits += 1
        return outcomes
