"""Money: a limit that hundreds of calls in flight cannot cross, and what is said when it is reached."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from provider_fakes import FakeProvider, ask, asking, no_sleep

from zephyrctl.errors import BudgetReached, UsageError
from zephyrctl.events import Calls, Recorder
from zephyrctl.ledger.entries import Budget, Intent, NoRoom, Request, Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import Price
from zephyrctl.providers.base import Answer, Rejected, Retryable
from zephyrctl.providers.calling.purse import enough
from zephyrctl.providers.calling.retry import Retry

DOLLAR = Price(1.0, 1.0)
"""A token costs one uusd."""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


class Shop(FakeProvider):
    """Calls that cost 1..100 uusd, of at most 100."""

    price = DOLLAR
    most = (50, 50)

    def __init__(self, seed: int = 0, wait: float = 0.002) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.wait = wait
        self.script = self.work
        self.usage = lambda body: (self.draw.randint(1, 50), self.draw.randint(0, 50))  # type: ignore[method-assign]

    async def work(self, body: Mapping[str, Any], times: int) -> None:
        await asyncio.sleep(self.draw.random() * self.wait)
        chance = self.draw.random()
        if chance < 0.05:
            raise Retryable("timeout", "slow", maybe_billed=True)
        if chance < 0.1:
            raise Retryable("server_error", "HTTP 500")
        if chance < 0.12:
            raise Rejected("rejected", "HTTP 400")


@settings(max_examples=12, deadline=None)
@given(limit=st.integers(0, 6000), seed=st.integers(0, 99), concurrency=st.sampled_from([1, 7, 100]))
def test_a_limit_is_never_crossed_and_is_used(
    tmp_path_factory: pytest.TempPathFactory, limit: int, seed: int, concurrency: int
) -> None:
    with Ledger.open(tmp_path_factory.mktemp("l") / "l") as ledger:
        for restart in range(2):
            try:
                with asking(
                    ledger, sleep=no_sleep, concurrency=concurrency, budget=Budget(step=limit)
                ) as caller:
                    caller.ask(Shop(seed + restart), [ask(str(n)) for n in range(150)], task="t")
                reached = False
            except BudgetReached:
                reached = True
            spend = ledger.spend("run")
            assert spend.reserved == 0
            assert spend.spent <= limit
            # It stops only when not even one more call fits.
            assert not reached or spend.spent + 100 > limit


def test_two_callers_cannot_both_pass(ledger: Ledger) -> None:
    def one(name: str) -> bool:
        try:
            with asking(ledger, run=name, concurrency=50, budget=Budget(project=2000)) as caller:
                caller.ask(Shop(), [ask(f"{name} {n}") for n in range(100)], task="t")
        except BudgetReached:
            return True
        return False

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(one, ["a", "b"])) == [True, True]
    assert 1900 < ledger.spend(None).spent <= 2000


def test_what_is_said_when_it_is_reached(ledger: Ledger) -> None:
    class Fixed(FakeProvider):
        price = Price(1000.0, 1000.0)
        most = (10, 20)

    with pytest.raises(BudgetReached) as caught, asking(ledger, budget=Budget(step=100_000)) as caller:
        caller.ask(Fixed(), [ask(str(n)) for n in range(20)], task="t")
    error = caught.value
    assert error.exit_code == 7
    assert "this step" in error.message
    assert "$0.0750 of $0.1000 spent" in error.message
    assert "5 of 20 calls of this wave are done" in error.message
    assert error.hint is not None
    assert "--max-usd 0.40 " in error.hint
    assert "--accept-partial" in error.hint


def test_the_project_has_its_own_limit(ledger: Ledger) -> None:
    with asking(ledger, run="one", budget=Budget(project=1000)) as caller:
        caller.ask(Shop(wait=0), [ask("a")], task="t")
    with (
        pytest.raises(BudgetReached, match="the project") as caught,
        asking(ledger, run="two", budget=Budget(project=20)) as caller,
    ):
        caller.ask(Shop(wait=0), [ask("b")], task="t")
    assert "zephyrctl.yaml" in str(caught.value.hint)


def test_no_budget_means_replies_of_the_ledger_only(ledger: Ledger) -> None:
    provider = Shop(wait=0)
    with asking(ledger) as caller:
        caller.ask(provider, [ask("a")], task="t")
    sent = len(provider.sent)
    with asking(ledger, run="other", budget=Budget(step=0)) as caller:
        assert isinstance(caller.ask(provider, [ask("a")], task="t")[0], Answer)
        with pytest.raises(BudgetReached):
            caller.ask(provider, [ask("b")], task="t")
    assert len(provider.sent) == sent


def test_calls_in_flight_get_fewer_before_the_end(ledger: Ledger) -> None:
    now = 0
    levels = []

    async def script(body: Mapping[str, Any], times: int) -> None:
        nonlocal now
        now += 1
        levels.append(now)
        await asyncio.sleep(0.005)
        now -= 1

    provider = FakeProvider(script=script)
    provider.price, provider.most = DOLLAR, (100, 100)
    with pytest.raises(BudgetReached), asking(ledger, budget=Budget(step=2000), concurrency=50) as caller:
        caller.ask(provider, [ask(str(n)) for n in range(300)], task="t")
    # 10 fit at first; every call costs 15, so more than 100 are made, ever fewer at a time.
    assert max(levels) == 10
    assert len(provider.sent) >= 110
    assert max(levels[-3:]) <= 3


def test_an_unknown_price_counts_only_under_a_limit(ledger: Ledger) -> None:
    provider = FakeProvider()
    provider.price = None
    with asking(ledger) as caller:
        assert isinstance(caller.ask(provider, [ask("a")], task="t")[0], Answer)
        assert caller.summary()[0]["cost_usd"] is None
    with asking(ledger, budget=Budget(step=10)) as caller:
        assert isinstance(caller.ask(provider, [ask("a")], task="t")[0], Answer)
        with pytest.raises(UsageError, match="price of fake:fake is not known") as caught:
            caller.ask_all([(FakeProvider("known"), ask("a")), (provider, ask("b"))], task="t")
    assert "--price" in str(caught.value.hint)
    assert len(provider.sent) == 1


def test_a_reply_without_a_count_costs_what_was_reserved(ledger: Ledger) -> None:
    told = Recorder()
    provider = FakeProvider()
    provider.price, provider.most = DOLLAR, (10, 20)
    provider.usage = lambda body: None  # type: ignore[method-assign]
    with asking(ledger, emit=told) as caller:
        caller.ask(provider, [ask("a"), ask("b")], task="t")
    assert ledger.spend("run").settled == 60
    assert caller.summary()[0]["ignored"] == {"usage": 2}
    assert [t for t in told.texts() if "without token counts" in t] == told.texts()


def test_another_process_holds_the_rest_for_a_while(ledger: Ledger) -> None:
    release = asyncio.Event()
    loop: Any = None
    waits = 0

    async def hold(body: Mapping[str, Any], times: int) -> None:
        await asyncio.wait_for(release.wait(), 10)

    async def sleep(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            loop.call_soon_threadsafe(release.set)
        await asyncio.sleep(0.02)

    first, second = FakeProvider("first"), FakeProvider("second")
    for provider in (first, second):
        provider.price, provider.most = DOLLAR, (10, 10)
    first.script = hold

    with (
        ThreadPoolExecutor(1) as threads,
        asking(ledger, run="one", budget=Budget(project=35)) as one,
        asking(ledger, run="two", budget=Budget(project=35), sleep=sleep) as two,
    ):
        loop = one._board.loop()[0].loop
        early = threads.submit(one.ask, first, [ask("a")], task="t")
        while ledger.spend(None).reserved == 0:
            pass
        assert isinstance(two.ask(second, [ask("b")], task="t")[0], Answer)
        assert isinstance(early.result()[0], Answer)
    assert waits >= 3


def test_the_live_line_tells_what_is_spent_and_left(ledger: Ledger) -> None:
    told = Recorder()
    provider = FakeProvider()
    provider.price = Price(1000.0, 1000.0)
    with asking(ledger, emit=told, budget=Budget(step=1_000_000)) as caller:
        caller.ask(provider, [ask(str(n)) for n in range(4)], task="t")
    last = [e for e in told.events if isinstance(e, Calls)][-1]
    assert (last.spent, last.left) == (0.06, 0.94)
    assert caller.spent().settled == 60_000
    assert caller.summary()[0]["cost_usd"] == 0.06


@given(
    spent=st.integers(0, 10**9),
    limit=st.integers(0, 10**9),
    need=st.integers(1, 10**7),
    done=st.integers(0, 1000),
    rest=st.integers(1, 1000),
)
def test_the_limit_that_is_proposed_is_higher_and_enough(
    spent: int, limit: int, need: int, done: int, rest: int
) -> None:
    spent = min(spent, limit)
    proposed = float(enough(spent, NoRoom("step", limit, spent, 0, need), done=done, total=done + rest)) * 1e6
    assert proposed >= limit
    assert proposed >= spent + need
    assert not done or proposed >= spent + rest * spent / done


def test_the_poll_for_room_comes_to_an_end(ledger: Ledger) -> None:
    request = Request.of(provider="p", origin="o", endpoint="/", model="m", body={}, draw=0)
    ledger.begin_many([Intent(request, 90)], Run("other")).result()
    provider = Shop(wait=0)
    with (
        pytest.raises(BudgetReached),
        asking(ledger, sleep=no_sleep, retry=Retry(max_wait=20), budget=Budget(project=150)) as caller,
    ):
        caller.ask(provider, [ask("a")], task="t")
    assert provider.sent == []
