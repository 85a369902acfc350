"""Ledger writes of one turn of the loop go as one, and every writer hears of its own."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from zephyrctl.errors import EnvironmentFault
from zephyrctl.ledger.entries import Budget, Ended, Intent, Request, Run
from zephyrctl.providers.calling.posting import Post


class SlowLedger:
    """Answers from another thread, when told to."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.release = threading.Event()
        self.error: Exception | None = None

    def begin_many(self, intents: list[Intent], run: Run, budget: Budget) -> Future[Any]:
        self.groups.append(len(intents))
        done: Future[Any] = Future()

        def work() -> None:
            self.release.wait(10)
            if self.error:
                done.set_exception(self.error)
            else:
                done.set_result([int(intent.request.key) for intent in intents])

        threading.Thread(target=work).start()
        return done

    def finish_many(self, finished: list[Any]) -> Future[Any]:
        raise EnvironmentFault("the ledger is closed")

    def fail_many(self, ended: list[Any]) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(None)
        return done


def intent(number: int) -> Intent:
    return Intent(Request(str(number), "fake", "here", "/", "fake", {}, 0))


def post(ledger: SlowLedger) -> Post:
    return Post(ledger, Run("run"), Budget())  # type: ignore[arg-type]


def test_one_turn_one_write_and_the_next_gathers_meanwhile() -> None:
    ledger = SlowLedger()

    async def work() -> list[Any]:
        writes = post(ledger)
        first = [writes.begin(intent(n)) for n in range(5)]
        await asyncio.sleep(0)
        second = [writes.begin(intent(n)) for n in range(5, 8)]
        await asyncio.sleep(0)
        third = writes.begin(intent(8))
        ledger.release.set()
        return await asyncio.gather(*first, *second, third)

    assert asyncio.run(work()) == list(range(9))
    assert ledger.groups == [5, 4]


def test_an_error_reaches_everybody_of_the_group() -> None:
    ledger = SlowLedger()
    ledger.release.set()
    ledger.error = EnvironmentFault("disk full")

    async def work() -> list[Any]:
        writes = post(ledger)
        return await asyncio.gather(*(writes.begin(intent(n)) for n in range(3)), return_exceptions=True)

    assert [str(error) for error in asyncio.run(work())] == ["disk full"] * 3


def test_a_ledger_that_raises_at_once() -> None:
    async def work() -> None:
        await post(SlowLedger()).finish(None)  # type: ignore[arg-type]

    with pytest.raises(EnvironmentFault, match="closed"):
        asyncio.run(work())


def test_last_words_are_waited_for() -> None:
    async def work() -> None:
        writes = post(SlowLedger())
        writes.last_word(Ended(1, "in_doubt", "stopped"))
        await writes.drain()

    asyncio.run(work())
