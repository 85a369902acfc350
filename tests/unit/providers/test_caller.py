"""The caller: order, replay, retries, breaker, fatal errors, draws, counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from provider_fakes import FakeProvider, ask, asking, no_sleep, said, texts

from zephyrctl.errors import AuthError, IntegrityError, Locked, ProviderDown, UsageError
from zephyrctl.events import Calls, Recorder
from zephyrctl.ledger.entries import Intent, Request, Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Answer, Failure, Received, Rejected, Retryable
from zephyrctl.providers.calling.caller import Caller, CallSettings
from zephyrctl.providers.calling.retry import Retry


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def caller(ledger: Ledger, **settings: Any) -> Caller:
    return asking(ledger, **{"sleep": no_sleep, "concurrency": 4, **settings})


def ask_once(
    ledger: Ledger, provider: FakeProvider, *questions: str, **settings: Any
) -> list[Answer | Failure]:
    with caller(ledger, **settings) as c:
        return c.ask(provider, [ask(q) for q in questions], task="t")


@settings(max_examples=15, deadline=None)
@given(questions=st.lists(st.sampled_from("abcdefgh"), max_size=20), concurrency=st.integers(1, 9))
def test_order_and_equal_requests(
    tmp_path_factory: pytest.TempPathFactory, questions: list[str], concurrency: int
) -> None:
    async def jumble(body: Mapping[str, Any], times: int) -> None:
        await asyncio.sleep((ord(said(body)) * 7 % 5) / 1000)

    provider = FakeProvider(script=jumble)
    with Ledger.open(tmp_path_factory.mktemp("l") / "l") as ledger:
        results = ask_once(ledger, provider, *questions, concurrency=concurrency)
    assert texts(results) == [f"fake says {q}" for q in questions]
    assert sorted(provider.sent) == sorted(set(questions))


def test_draws_and_models_are_asked_apart(ledger: Ledger) -> None:
    a, b = FakeProvider("a"), FakeProvider("b")
    pairs = [(a, ask("q")), (b, ask("q")), (a, ask("q", draw=1)), (a, ask("q", draw=1))]
    with caller(ledger) as c:
        results = c.ask_all(pairs, task="t")
    assert texts(results) == ["a says q", "b says q", "a says q", "a says q"]
    assert (len(a.sent), len(b.sent)) == (2, 1)
    assert [(s["model"], s["calls"]) for s in c.summary()] == [("fake:a", 2), ("fake:b", 1)]
    assert a.closed == b.closed == 1


def test_connections_last_from_wave_to_wave(ledger: Ledger) -> None:
    loops = set()

    async def script(body: Mapping[str, Any], times: int) -> None:
        loops.add(asyncio.get_running_loop())
        assert provider.closed == 0

    provider = FakeProvider(script=script)
    with caller(ledger) as c:
        for wave in range(3):
            c.ask(provider, [ask(f"{wave}/{n}") for n in range(3)], task="t")
    assert len(loops) == 1
    assert provider.closed == 1
    assert not [t for t in threading.enumerate() if t.name == "calls"]


def test_a_later_caller_pays_nothing(ledger: Ledger) -> None:
    ask_once(ledger, FakeProvider(), "q")

    async def never(body: Mapping[str, Any], times: int) -> None:
        raise AssertionError("asked again")

    with caller(ledger) as c:
        (result,) = c.ask(FakeProvider(script=never), [ask("q")], task="t")
    assert isinstance(result, Answer)
    assert result.replayed
    assert (c.summary()[0]["calls"], c.summary()[0]["replayed"]) == (0, 1)


def test_another_set_of_draws_is_asked_anew_and_kept(ledger: Ledger) -> None:
    provider = FakeProvider()
    for redraw, sent in ((0, 1), (1, 2), (1, 2), (2, 3), (0, 3)):
        ask_once(ledger, provider, "q", redraw=redraw)
        assert len(provider.sent) == sent


def test_a_reply_is_durable_before_it_is_handed_on(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        (result,) = ask_once(ledger, FakeProvider(), "q")
        with Ledger.open(tmp_path / "l") as other:
            assert other.known([result.key])[result.key].body == FakeProvider().raw(
                FakeProvider().wire(ask("q"))
            )


def test_intent_is_durable_before_the_send(tmp_path: Path) -> None:
    states = []
    with Ledger.open(tmp_path / "l") as ledger:

        async def look(body: Mapping[str, Any], times: int) -> None:
            with Ledger.open(tmp_path / "l") as other:
                states.append(other.stats("run").states)

        with caller(ledger, concurrency=1) as c:
            for question in "ab":
                c.ask(FakeProvider(script=look), [ask(question)], task="t")
    assert states == [{"inflight": 1}, {"inflight": 1, "ok": 1}]


@pytest.mark.parametrize("concurrency", [1, 3, 16])
def test_the_ceiling_is_used_and_holds_on_the_wire(ledger: Ledger, concurrency: int) -> None:
    now, most = 0, 0
    full = asyncio.Event()

    async def script(body: Mapping[str, Any], times: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == concurrency:
            full.set()
        await full.wait()
        await asyncio.sleep(0.001)
        now -= 1

    ask_once(ledger, FakeProvider(script=script), *map(str, range(100)), concurrency=concurrency)
    assert most == concurrency


def test_one_poisoned_row_fails_alone(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "bad":
            raise Retryable("server_error", "HTTP 500", status=500)

    provider = FakeProvider(script=script)
    questions = ["one", "bad", *map(str, range(20))]
    with caller(ledger, concurrency=2) as c:
        results = c.ask(provider, [ask(q) for q in questions], task="t")
    assert [type(r) for r in results] == [Answer, Failure, *[Answer] * 20]
    assert provider.sent.count("bad") == 6
    assert c.summary()[0]["failures"] == {"server_error": 1}
    assert c.summary()[0]["retries"] == 5
    assert ask_once(ledger, FakeProvider(), "bad")[0].key == results[1].key


def test_a_poisoned_row_alone_in_its_wave_fails_alone(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "bad":
            raise Retryable("server_error", "HTTP 500", status=500)

    with caller(ledger) as c:
        c.ask(FakeProvider(script=script), [ask("good")], task="t")
        assert texts(c.ask(FakeProvider(script=script), [ask("bad")], task="t")) == ["<server_error>"]


@pytest.mark.parametrize("reason", ["server_error", "transport", "timeout"])
def test_an_outage_at_the_end_of_a_wave_is_no_rows_fault(ledger: Ledger, reason: str) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) in ("x", "y"):
            raise Retryable(reason, "gone")

    with pytest.raises(ProviderDown, match="no answer to the last 2 rows") as caught:
        ask_once(ledger, FakeProvider(script=script), "a", "b", "c", "d", "x", "y", concurrency=1, breaker=99)
    assert caught.value.exit_code == 75


def test_rows_that_fail_again_in_the_next_run_fail_on_their_own(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) in ("x", "y"):
            raise Retryable("server_error", "HTTP 500", status=500)

    provider = FakeProvider(script=script)
    with pytest.raises(ProviderDown, match="no answer to the last 2 rows"):
        ask_once(ledger, provider, "a", "x", "y", concurrency=1, breaker=99)
    again = ask_once(ledger, provider, "a", "x", "y", concurrency=1, breaker=99)
    assert texts(again) == ["fake says a", "<server_error>", "<server_error>"]


def test_a_last_row_that_finds_nobody_is_an_outage(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "x":
            raise Retryable("transport", "connection refused", maybe_billed=False)

    with pytest.raises(ProviderDown, match="connection refused"):
        ask_once(ledger, FakeProvider(script=script), "a", "b", "x", concurrency=1)


def test_rows_that_failed_before_others_were_answered_fail_on_their_own(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) in ("x", "y"):
            raise Retryable("server_error", "HTTP 500")
        await asyncio.sleep(0.05)

    results = ask_once(
        ledger,
        FakeProvider(script=script),
        "x",
        "y",
        "a",
        "b",
        "c",
        concurrency=5,
        breaker=99,
        retry=Retry(2),
    )
    assert texts(results) == ["<server_error>", "<server_error>", "fake says a", "fake says b", "fake says c"]


def test_a_model_that_never_answered_is_down(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        raise Retryable("transport", "nobody there")

    with pytest.raises(ProviderDown, match="no answer after 6 attempts"):
        ask_once(ledger, FakeProvider(script=script), "q")


@pytest.mark.parametrize("reason", ["server_error", "transport", "timeout"])
def test_the_breaker_counts_over_rows(ledger: Ledger, reason: str) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) != "0":
            raise Retryable(reason, "no")

    provider = FakeProvider(script=script)
    with pytest.raises(ProviderDown, match="12 calls in a row failed") as caught:
        ask_once(ledger, provider, *map(str, range(50)))
    assert caught.value.retryable
    assert caught.value.resume
    assert len(provider.sent) <= 1 + 12 + 4


def test_rows_slow_down_when_everybody_fails(ledger: Ledger) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    async def script(body: Mapping[str, Any], times: int) -> None:
        raise Retryable("transport", "no")

    with pytest.raises(ProviderDown):
        ask_once(ledger, FakeProvider(script=script), *map(str, range(50)), sleep=sleep, breaker=24)
    assert max(waits) > 4


def test_row_faults_do_not_open_the_breaker(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "3":
            raise Rejected("rejected", "HTTP 400")
        if said(body) == "4":
            raise Retryable("bad_envelope", "HTML")

    results = ask_once(ledger, FakeProvider(script=script), *map(str, range(30)))
    assert [r.reason for r in results if isinstance(r, Failure)] == ["rejected", "bad_envelope"]
    assert len(results) == 30


def test_a_server_that_sends_nothing_but_rubbish_is_down(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        raise Retryable("bad_envelope", "HTML", maybe_billed=True)

    provider = FakeProvider(script=script)
    with pytest.raises(ProviderDown, match="calls in a row failed"):
        ask_once(ledger, provider, *map(str, range(200)))
    assert len(provider.sent) < 100


@pytest.mark.parametrize("error", [AuthError("no"), UsageError("no"), ZeroDivisionError("a bug")])
def test_a_fatal_error_stops_all_and_keeps_what_arrived(ledger: Ledger, error: Exception) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "5":
            raise error
        await asyncio.sleep(0.02)

    provider = FakeProvider(script=script)
    with caller(ledger) as c:
        with pytest.raises(type(error)):
            c.ask(provider, [ask(str(n)) for n in range(200)], task="t")
        sent = len(provider.sent)
        assert sent < 30
        with pytest.raises(type(error)):
            c.ask(provider, [ask("one more")], task="t")
        assert len(provider.sent) == sent
    states = ledger.stats("run").states
    assert states["ok"] >= 4
    # a fault of ours can come after the request has left, so that call is in doubt
    assert set(states) <= {"ok", "error", "in_doubt", "cancelled"}


def test_a_fault_of_ours_does_not_hide_behind_an_outage(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "bug":
            await asyncio.sleep(0.05)
            raise ZeroDivisionError("a bug")
        raise AuthError("no")

    with pytest.raises(ZeroDivisionError):
        ask_once(ledger, FakeProvider(script=script), "bug", "refused", sleep=asyncio.sleep)


def test_calls_that_outlast_the_grace_are_in_doubt(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "bad":
            raise AuthError("no")
        await asyncio.sleep(60)

    with pytest.raises(AuthError):
        ask_once(ledger, FakeProvider(script=script), "slow", "bad", grace=0.1)
    assert ledger.stats("run").states == {"error": 1, "in_doubt": 1}


def test_a_sleeping_retry_does_not_hold_up_a_stop(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "bad":
            await asyncio.sleep(0.05)
            raise AuthError("no")
        raise Retryable("server_error", "HTTP 500")

    with pytest.raises(AuthError):
        ask_once(ledger, FakeProvider(script=script), "bad", "other", sleep=asyncio.sleep, grace=60)


def test_a_deadline_bounds_every_attempt(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if times == 0:
            await asyncio.sleep(60)

    assert texts(ask_once(ledger, FakeProvider(script=script), "q", deadline=0.05)) == ["fake says q"]
    assert ledger.stats("run").states == {"ok": 1, "timeout": 1}


def test_another_process_that_asks_the_same_is_waited_for(ledger: Ledger, tmp_path: Path) -> None:
    provider = FakeProvider()
    with Ledger.open(tmp_path / "ledger.sqlite") as other:
        body = provider.wire(ask("q"))
        request = Request.of(
            provider="fake", origin="here", endpoint="/", model="fake:fake", body=body, draw=0
        )
        (attempt,) = other.begin_many([Intent(request)], Run("other")).result()
        assert isinstance(attempt, int)
        with pytest.raises(Locked, match=r"pid \d+ on"):
            ask_once(ledger, provider, "q", retry=Retry(max_wait=5))
        assert provider.sent == []


def test_nothing_to_ask(ledger: Ledger) -> None:
    assert ask_once(ledger, FakeProvider()) == []
    assert not ledger.path.exists()


@pytest.mark.parametrize("bad", [{"concurrency": 0}, {"rpm": 0}, {"tpm": -1}])
def test_bad_settings(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        CallSettings(**bad)


def test_asking_needs_the_with_statement(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError, match="with"):
        caller(ledger).ask(FakeProvider(), [ask("q")], task="t")


def test_a_stored_reply_that_this_version_cannot_read(ledger: Ledger) -> None:
    ask_once(ledger, FakeProvider(), "q")

    class Newer(FakeProvider):
        def read(self, raw: bytes) -> Any:
            raise Retryable("bad_envelope", "another form")

    assert texts(ask_once(ledger, Newer(), "q")) == ["<unreadable>"]


def test_a_damaged_reply_stops_the_work(ledger: Ledger) -> None:
    ask_once(ledger, FakeProvider(), "q")
    ledger.write(lambda db: db.execute("UPDATE response SET body_z = x'00'")).result()
    with pytest.raises(IntegrityError, match="damaged reply"):
        ask_once(ledger, FakeProvider(), "q")


def test_a_wave_that_breaks_while_it_is_read_sends_no_more(ledger: Ledger) -> None:
    ask_once(ledger, FakeProvider(), "700")
    ledger.write(lambda db: db.execute("UPDATE response SET body_z = x'00'")).result()

    async def script(body: Mapping[str, Any], times: int) -> None:
        await asyncio.sleep(0.05)

    provider = FakeProvider(script=script)
    with pytest.raises(IntegrityError, match="damaged reply"):
        ask_once(ledger, provider, *map(str, range(1000)), sleep=asyncio.sleep)
    assert len(provider.sent) <= 40


def test_works_in_a_thread_and_inside_a_running_loop(ledger: Ledger) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        results = threads.submit(ask_once, ledger, FakeProvider(), "q").result()
    assert texts(results) == ["fake says q"]

    async def inside() -> list[str]:
        return texts(ask_once(ledger, FakeProvider(), "r"))

    assert asyncio.run(inside()) == ["fake says r"]


def test_live_events_reach_the_total_and_are_seldom(ledger: Ledger) -> None:
    told = Recorder()
    with caller(ledger, emit=told, concurrency=8) as c:
        c.ask(FakeProvider(), [ask(str(n % 400)) for n in range(500)], task="ask")
        c.ask(FakeProvider(), [ask(str(n)) for n in range(400)], task="again")
    seen = [e for e in told.events if isinstance(e, Calls) and e.task == "ask"]
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, 500, 500)
    assert [e.done for e in seen] == sorted(e.done for e in seen)
    assert len(seen) <= 100
    last = [e for e in told.events if isinstance(e, Calls)][-1]
    assert (last.task, last.done, last.total, last.replayed, last.eta) == ("again", 400, 400, 400, None)


def test_what_the_provider_has_to_say_is_told_once(ledger: Ledger) -> None:
    told = Recorder()
    provider = FakeProvider()
    provider.notices = ("OPENAI_BASE_URL is in effect",)  # type: ignore[attr-defined]
    provider.dropped = ("seed",)
    with caller(ledger, emit=told) as c:
        for question in "ab":
            c.ask(provider, [ask(question)], task="t")
    assert [t for t in told.texts() if "in effect" in t or "left out: seed" in t] == told.texts()
    assert len(told.texts()) == 2
    assert c.summary()[0]["dropped"] == ["seed"]


def test_the_request_id_is_kept_with_the_attempt(ledger: Ledger) -> None:
    class Named(FakeProvider):
        async def send(self, body: Mapping[str, Any]) -> Received:
            return Received(self.raw(body), "req-42")

    ask_once(ledger, Named(), "q")
    assert ledger.read(lambda db: db.execute("SELECT request_id FROM attempt").fetchall()) == [("req-42",)]
