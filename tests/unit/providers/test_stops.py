"""Stops at awkward moments, replies that break their reader, and a server that sends rubbish: nothing hangs, nothing
goes out late, and what may have been billed is in the books."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from provider_fakes import FakeProvider, ask, asking, no_sleep, said, texts

from zephyrctl.cli import app
from zephyrctl.errors import Interrupted, ProviderDown, UsageError
from zephyrctl.events import Recorder
from zephyrctl.ledger.entries import Budget, Ended, Intent, Request, Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import Price
from zephyrctl.providers.base import Reading, Received, Retryable
from zephyrctl.providers.calling.stopping import Stop

BAD = b"a reply that nobody can read"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


class Overflowing(FakeProvider):
    """Its reader breaks at the reply to `bad`."""

    def raw(self, body: Mapping[str, Any]) -> bytes:
        return BAD if said(body) == "bad" else super().raw(body)

    def read(self, raw: bytes) -> Reading:
        if raw == BAD:
            raise OverflowError("int too large to convert to float")
        return super().read(raw)


def test_a_reply_that_breaks_its_reader_is_that_rows_failure_and_in_doubt(ledger: Ledger) -> None:
    provider = Overflowing()
    with asking(ledger, sleep=no_sleep) as caller:
        results = caller.ask(provider, [ask(q) for q in ("good", "bad")], task="t")
    assert texts(results) == ["fake says good", "<bad_envelope>"]
    assert ledger.stats("run").states == {"ok": 1, "in_doubt": 6}


def test_a_reply_that_cannot_be_stored_is_in_doubt(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(finished: Any) -> Future[Any]:
        raise OverflowError("Python int too large to convert to SQLite INTEGER")

    monkeypatch.setattr(ledger, "finish_many", fail)
    with pytest.raises(OverflowError), asking(ledger) as caller:
        caller.ask(FakeProvider(), [ask("q")], task="t")
    assert ledger.stats("run").states == {"in_doubt": 1}


def test_a_fault_while_sending_is_in_doubt(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError), asking(ledger) as caller:
        caller.ask(FakeProvider(script=script), [ask("q")], task="t")
    assert ledger.stats("run").states == {"in_doubt": 1}


def test_intents_that_are_written_after_a_stop_are_not_sent(ledger: Ledger) -> None:
    ledger.used(Run("run"), ["0" * 64]).result()
    lock = sqlite3.connect(ledger.path, isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    provider = FakeProvider()
    caller = asking(ledger, grace=0.2)

    def stop() -> None:
        caller._board.give_up(Interrupted(2))
        threading.Timer(0.5, lock.execute, ["COMMIT"]).start()

    threading.Timer(0.5, stop).start()
    with pytest.raises(Interrupted), caller:
        caller.ask(provider, [ask(str(n)) for n in range(8)], task="t")
    lock.close()
    assert provider.sent == []
    assert set(ledger.stats("run").states) == {"cancelled"}


@pytest.mark.parametrize("grace", [0.0, 600.0])
def test_a_stop_does_not_wait_for_servers_that_start(ledger: Ledger, grace: float) -> None:
    waiting = threading.Event()

    class Slow(FakeProvider):
        async def ready(self) -> None:
            waiting.set()
            await asyncio.sleep(3600)

    provider = Slow()
    caller = asking(ledger, grace=grace)

    def stop() -> None:
        waiting.wait(30)
        caller._board.give_up(Interrupted(2))

    threading.Thread(target=stop).start()
    with pytest.raises(Interrupted), caller:
        caller.ask(provider, [ask(str(n)) for n in range(3)], task="t")
    assert provider.sent == []
    assert "inflight" not in ledger.stats("run").states


def test_a_stop_while_the_server_asked_for_a_rest(ledger: Ledger) -> None:
    class Tired(FakeProvider):
        async def send(self, body: Mapping[str, Any]) -> Received:
            got = await super().send(body)
            threading.Timer(0.2, caller._board.give_up, [Interrupted(2)]).start()
            return Received(got.body, got.request_id, 600.0)

    provider = Tired()
    caller = asking(ledger, concurrency=1)
    with pytest.raises(Interrupted), caller:
        caller.ask(provider, [ask(str(n)) for n in range(8)], task="t")
    assert len(provider.sent) == 1
    assert set(ledger.stats("run").states) <= {"ok", "cancelled"}


def test_a_second_signal_while_closing_keeps_the_first_ones_exit_code(ledger: Ledger) -> None:
    class Hanging(FakeProvider):
        async def aclose(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.2)

    with pytest.raises(Interrupted) as caught, asking(ledger) as caller:
        caller.ask(Hanging(), [ask("q")], task="t")
    assert caught.value.exit_code == 143


def test_a_second_signal_outside_a_call_keeps_the_first_ones_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice(*arguments: Any, **settings: Any) -> None:
        with Stop():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(app, "app", twice)
    assert app.run([]) == 143
    assert "stopped by a signal" in capsys.readouterr().err


def test_a_hangup_is_a_stop_unless_it_is_ignored() -> None:
    with Stop() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.number == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("ignored", [False, True])
def test_the_command_line_takes_a_hangup_as_a_stop(ignored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang_up(argv: Any) -> int:
        signal.raise_signal(signal.SIGHUP)
        return 0

    monkeypatch.setattr(app, "run", hang_up)
    before = {n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGTERM)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit if ignored else Interrupted) as caught:
            app.main([])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if isinstance(caught.value, Interrupted):
        assert caught.value.exit_code == 129


@pytest.mark.parametrize("reason", ["bad_envelope", "conflict"])
@pytest.mark.parametrize(
    ("rows", "why"), [(50, "12 calls in a row failed"), (1, "no answer after 6 attempts")]
)
def test_a_server_that_sends_nothing_but_rubbish_is_down(
    ledger: Ledger, reason: str, rows: int, why: str
) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        raise Retryable(reason, "<html>", maybe_billed=True)

    provider = FakeProvider(script=script)
    with pytest.raises(ProviderDown, match=why), asking(ledger, concurrency=4, sleep=no_sleep) as caller:
        caller.ask(provider, [ask(str(n)) for n in range(rows)], task="t")
    assert len(provider.sent) <= 12 + 4


@pytest.mark.parametrize("reason", ["bad_envelope", "conflict"])
def test_a_row_that_gives_rubbish_among_good_ones_fails_alone(ledger: Ledger, reason: str) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "bad":
            raise Retryable(reason, "<html>", maybe_billed=True)

    with asking(ledger, concurrency=1, sleep=no_sleep) as caller:
        results = caller.ask(FakeProvider(script=script), [ask(q) for q in ("a", "b", "bad")], task="t")
    assert texts(results) == ["fake says a", "fake says b", f"<{reason}>"]


def test_a_fault_beside_the_calls_ends_the_work(ledger: Ledger) -> None:
    provider = FakeProvider()
    provider.price = Price(1.0, 1.0)
    held = Request.of(provider="x", origin="y", endpoint="/", model="z", body={}, draw=0)
    ledger.begin_many([Intent(held, 1_000)], Run("other")).result()

    async def broken(seconds: float) -> None:
        raise ZeroDivisionError("a bug")

    budget = Budget(project=1_010)
    with pytest.raises(ZeroDivisionError), asking(ledger, sleep=broken, budget=budget) as caller:
        caller.ask(provider, [ask("q")], task="t")
    assert provider.sent == []


@pytest.mark.parametrize(("rest", "told"), [(30.0, 1), (5.0, 0)])
def test_a_long_rest_is_told_once(ledger: Ledger, rest: float, told: int) -> None:
    class Tired(FakeProvider):
        async def send(self, body: Mapping[str, Any]) -> Received:
            got = await super().send(body)
            await asyncio.sleep(0.01)
            return Received(got.body, got.request_id, rest + len(self.sent) if len(self.sent) <= 4 else None)

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0.1)

    heard = Recorder()
    with asking(ledger, concurrency=4, sleep=sleep, emit=heard) as caller:
        caller.ask(Tired(), [ask(str(n)) for n in range(4)], task="t")
    assert len([text for text in heard.texts() if "asks to slow down: waiting 3" in text]) == told
    assert len(heard.texts()) == told


def test_a_call_in_doubt_that_was_answered_later_stops_nothing(ledger: Ledger) -> None:
    provider = FakeProvider()
    request = Request.of(
        provider="fake", origin="here", endpoint="/", model="fake:fake", body=provider.wire(ask("a")), draw=0
    )
    (attempt,) = ledger.begin_many([Intent(request, 10)], Run("run")).result()
    assert isinstance(attempt, int)
    ledger.fail_many([Ended(attempt, "in_doubt", "stopped")]).result()
    with asking(ledger, in_doubt="stop") as caller, pytest.raises(UsageError, match="1 calls of this step"):
        caller.ask(provider, [ask("b")], task="t")
    with asking(ledger) as caller:
        caller.ask(provider, [ask("a")], task="t")
    with asking(ledger, in_doubt="stop") as caller:
        assert texts(caller.ask(provider, [ask("b")], task="t")) == ["fake says b"]
