"""Writes to the ledger from an event loop: all that come up in one turn of the loop go as one.

Each kind of write is one call of the ledger and one way back into the loop for all that wait at that moment, so
that hundreds of calls in flight cost little more than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

from zephyrctl.ledger.entries import Begun, Budget, Ended, Finished, Intent, Run, StoredReply
from zephyrctl.ledger.ledger import Ledger

_WHOLE = 24
"""A group of that size goes off at once; each write has a price of its own, so smaller ones wait for company."""
_GATHER_SECONDS = 0.003

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class _Gather(Generic[Item, Outcome]):
    """One kind of write. While one group is on its way to the disk the next one gathers."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        write: Callable[[Sequence[Item]], Future[Any]],
        *,
        plain: bool = False,
    ) -> None:
        self._loop = loop
        self._write = write
        self._plain = plain
        self._waiting: list[tuple[Item, asyncio.Future[Outcome]]] = []
        self._out = False
        self._planned = False

    def add(self, item: Item) -> asyncio.Future[Outcome]:
        """The outcome of one write, once it is on the disk."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._waiting.append((item, future))
        if not self._out and not self._planned:
            self._planned = True
            self._loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        self._planned = False
        group, self._waiting = self._waiting, []
        if not group:
            return
        self._out = True
        try:
            done = self._write([item for item, _ in group])
        except Exception as error:
            done = Future()
            done.set_exception(error)
        done.add_done_callback(partial(self._back, group))

    def _back(self, group: list[tuple[Item, asyncio.Future[Outcome]]], done: Future[Any]) -> None:
        # In the ledger's thread: one call into the loop for the whole group.
        self._loop.call_soon_threadsafe(self._deliver, group, done)

    def _deliver(self, group: list[tuple[Item, asyncio.Future[Outcome]]], done: Future[Any]) -> None:
        self._out = False
        error = done.exception()
        outcomes = [None] * len(group) if error or self._plain else done.result()
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(outcome)
        self._planned = True
        if len(group) < _WHOLE:
            self._loop.call_later(_GATHER_SECONDS, self._flush)
        else:
            self._flush()


class Post:
    """The ledger as seen from one event loop, for one run with its budget."""

    def __init__(self, ledger: Ledger, run: Run, budget: Budget) -> None:
        loop = asyncio.get_running_loop()
        self._begin: _Gather[Intent, Begun] = _Gather(
            loop, lambda intents: ledger.begin_many(intents, run, budget)
        )
        self._finish: _Gather[Finished, StoredReply] = _Gather(loop, ledger.finish_many)
        self._fail: _Gather[Ended, None] = _Gather(loop, ledger.fail_many, plain=True)
        self._last_words: set[asyncio.Future[None]] = set()

    def begin(self, intent: Intent) -> asyncio.Future[Begun]:
        """Write down what is about to be sent, with the most it can cost."""
        return self._begin.add(intent)

    def finish(self, finished: Finished) -> asyncio.Future[StoredReply]:
        """Store a reply; the outcome is the one that holds from now on."""
        return self._finish.add(finished)

    def fail(self, ended: Ended) -> asyncio.Future[None]:
        """Write down that an attempt ended without a reply."""
        return self._fail.add(ended)

    def last_word(self, ended: Ended) -> None:
        """`fail` for one who cannot wait; `drain` waits for it."""
        future = self._fail.add(ended)
        self._last_words.add(future)

    async def drain(self) -> None:
        """Until all last words are on the disk, or cannot be."""
        await asyncio.gather(*self._last_words, return_exceptions=True)
        self._last_words.clear()
