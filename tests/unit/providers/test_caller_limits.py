"""Rate limits of every kind as the caller keeps to them, and a machine that runs out of files."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from provider_fakes import FakeProvider, ask, asking, no_sleep, said

from zephyrctl.errors import EnvironmentFault, ProviderDown
from zephyrctl.events import Calls, Recorder
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Answer, Received, Retryable
from zephyrctl.providers.calling import files, lane
from zephyrctl.providers.calling.retry import Retry


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


class Clock:
    """Sleeps that are written down and take no time; the clock goes by them."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0.001)

    def now(self) -> float:
        return sum(self.waits)


def refuse_once(retry_after: float | None) -> Any:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "0" and times == 0:
            raise Retryable("rate_limit", "HTTP 429", retry_after=retry_after)

    return script


def questions(count: int) -> list[Any]:
    return [ask(str(n)) for n in range(count)]


def test_a_time_that_the_server_gives_holds_back_everybody(ledger: Ledger) -> None:
    clock, told = Clock(), Recorder()
    sent_at_wait: list[int] = []

    async def sleep(seconds: float) -> None:
        sent_at_wait.append(len(provider.sent))
        await clock.sleep(seconds)
        sent_at_wait.append(len(provider.sent))

    provider = FakeProvider(script=refuse_once(30.0))
    with asking(ledger, concurrency=1, sleep=sleep, emit=told) as caller:
        results = caller.ask(provider, questions(5), task="t")
    assert all(isinstance(r, Answer) for r in results)
    assert sorted(clock.waits)[:2] >= [30.0, 30.0]
    assert set(sent_at_wait[:4]) == {1}
    assert [t for t in told.texts() if "slow down: waiting 30 s" in t] == told.texts()
    assert len(told.texts()) == 1


def test_without_a_time_only_that_row_steps_back(ledger: Ledger) -> None:
    clock = Clock()
    provider = FakeProvider(script=refuse_once(None))

    async def slow(body: Mapping[str, Any], times: int) -> None:
        await asyncio.sleep(0.01)
        await refuse_once(None)(body, times)

    provider.script = slow
    with asking(ledger, concurrency=4, sleep=clock.sleep) as caller:
        caller.ask(provider, questions(20), task="t")
        assert caller.summary()[0]["retries"] == 1
    assert clock.waits
    assert max(clock.waits) <= 0.1
    assert len(clock.waits) == 1


def test_a_server_that_refuses_everything_is_not_stormed(ledger: Ledger) -> None:
    clock = Clock()

    async def script(body: Mapping[str, Any], times: int) -> None:
        raise Retryable("rate_limit", "HTTP 429")

    provider = FakeProvider(script=script)
    with (
        pytest.raises(ProviderDown, match="asks to wait longer than 60 s in all"),
        asking(ledger, concurrency=50, sleep=clock.sleep, retry=Retry(max_wait=60)) as caller,
    ):
        caller.ask(provider, questions(500), task="t")
    assert len(provider.sent) <= 40
    assert max(clock.waits) > 5


@pytest.mark.parametrize("asked", [900.0, 1e9])
def test_a_wait_beyond_the_ceiling_ends_the_work_for_now(ledger: Ledger, asked: float) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        raise Retryable("rate_limit", "HTTP 429", retry_after=asked)

    with pytest.raises(ProviderDown) as caught, asking(ledger) as caller:
        caller.ask(FakeProvider(script=script), questions(3), task="t")
    assert caught.value.exit_code == 75


def test_a_rest_announced_with_a_reply_is_kept(ledger: Ledger) -> None:
    clock = Clock()

    class Tired(FakeProvider):
        async def send(self, body: Mapping[str, Any]) -> Received:
            got = await super().send(body)
            return Received(got.body, got.request_id, 12.0 if len(self.sent) == 2 else None)

    with asking(ledger, concurrency=1, sleep=clock.sleep) as caller:
        caller.ask(Tired(), questions(4), task="t")
    assert len(clock.waits) == 1
    assert 12.0 <= clock.waits[0] <= 13.0


def test_requests_per_minute(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(lane, "now", clock.now)
    provider = FakeProvider()
    provider.rpm = 12  # type: ignore[attr-defined]
    with asking(ledger, concurrency=8, sleep=clock.sleep, rpm=600) as caller:
        caller.ask(provider, questions(30), task="t")
    assert len(provider.sent) == 30
    assert 140 <= clock.now() <= 150


def test_tokens_per_minute(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(lane, "now", clock.now)
    provider = FakeProvider()
    provider.most = (100, 4000)
    with asking(ledger, concurrency=8, sleep=clock.sleep, tpm=3000) as caller:
        caller.ask(provider, questions(1), task="t")
        assert clock.waits == []
        # Every call takes 15 tokens, and that is what counts once it is known: 200 fit into a minute, not two.
        caller.ask(provider, [ask(f"x{n}") for n in range(400)], task="t")
    assert len(provider.sent) == 401
    assert 60 <= clock.now() <= 300


def test_a_server_that_bears_ten_is_asked_by_few_in_vain(ledger: Ledger) -> None:
    working = refused = 0

    async def script(body: Mapping[str, Any], times: int) -> None:
        nonlocal working, refused
        if working >= 10:
            refused += 1
            raise Retryable("rate_limit", "HTTP 429", status=429)
        working += 1
        await asyncio.sleep(0.02)
        working -= 1

    told = Recorder()
    with asking(ledger, concurrency=100, emit=told) as caller:
        results = caller.ask(FakeProvider(script=script), questions(400), task="t")
    assert all(isinstance(r, Answer) for r in results)
    assert 0 < refused <= 40
    last = [e for e in told.events if isinstance(e, Calls)][-1]
    assert last.limited == refused
    assert last.ceiling <= 12


def test_no_more_calls_than_files_can_be_open(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    now, most = 0, 0

    async def script(body: Mapping[str, Any], times: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1

    monkeypatch.setattr(resource, "getrlimit", lambda what: (64, 64))
    told = Recorder()
    with asking(ledger, concurrency=200, emit=told) as caller:
        caller.ask(FakeProvider(script=script), questions(200), task="t")
    assert most <= 16
    assert [t for t in told.texts() if "ulimit" in t] == told.texts()
    assert len(told.texts()) == 1


def test_files_that_run_out_lower_the_ceiling_with_one_warning(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "connections_possible", lambda: None)
    now = 0

    async def script(body: Mapping[str, Any], times: int) -> None:
        nonlocal now
        if now >= 12:
            raise Retryable("too_many_files", "no file descriptor is left for a connection")
        now += 1
        await asyncio.sleep(0.005)
        now -= 1

    told = Recorder()
    with asking(ledger, concurrency=100, emit=told, sleep=no_sleep) as caller:
        results = caller.ask(FakeProvider(script=script), questions(200), task="t")
    assert all(isinstance(r, Answer) for r in results)
    assert len([t for t in told.texts() if "ulimit" in t]) == 1


def test_not_even_one_file_is_left(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        raise Retryable("too_many_files", "no file descriptor is left for a connection")

    with pytest.raises(EnvironmentFault, match="file descriptor"), asking(ledger, sleep=no_sleep) as caller:
        caller.ask(FakeProvider(script=script), questions(20), task="t")
