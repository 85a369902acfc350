"""The caller: order, replay, retries, breaker, fatal errors, draws, progress, counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from provider_fakes import FakeProvider, ask, said

from zephyrctl.errors import AuthError, IntegrityError, ProviderDown, UsageError
from zephyrctl.events import Progress, Recorder
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Answer, Failure, Rejected, Retryable
from zephyrctl.providers.caller import Caller
from zephyrctl.providers.job import Result


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


def caller(ledger: Ledger, **settings: Any) -> Caller:
    return Caller(ledger, run_id="run", **{"sleep": no_sleep, "concurrency": 4, **settings})


def texts(results: list[Result]) -> list[str]:
    return [r.text if isinstance(r, Answer) else f"<{r.reason}>" for r in results]


@settings(max_examples=15, deadline=None)
@given(questions=st.lists(st.sampled_from("abcdefgh"), max_size=20), concurrency=st.integers(1, 9))
def test_order_and_equal_requests(
    tmp_path_factory: pytest.TempPathFactory, questions: list[str], concurrency: int
) -> None:
    async def jumble(body: Mapping[str, Any], times: int) -> None:
        await asyncio.sleep((ord(said(body)) * 7 % 5) / 1000)

    provider = FakeProvider(script=jumble)
    with Ledger.open(tmp_path_factory.mktemp("l") / "l") as ledger:
        results = caller(ledger, concurrency=concurrency).ask(provider, [ask(q) for q in questions], task="t")
    assert texts(results) == [f"fake says {q}" for q in questions]
    assert sorted(provider.sent) == sorted(set(questions))


def test_draws_and_models_are_asked_apart(ledger: Ledger) -> None:
    a, b = FakeProvider("a"), FakeProvider("b")
    pairs = [(a, ask("q")), (b, ask("q")), (a, ask("q", draw=1)), (a, ask("q", draw=1))]
    c = caller(ledger)
    results = c.ask_all(pairs, task="t")
    assert texts(results) == ["a says q", "b says q", "a says q", "a says q"]
    assert (len(a.sent), len(b.sent)) == (2, 1)
    assert [(s["model"], s["calls"]) for s in c.summary()] == [("fake:a", 2), ("fake:b", 1)]
    assert a.closed == b.closed == 1


def test_a_later_caller_pays_nothing(ledger: Ledger) -> None:
    caller(ledger).ask(FakeProvider(), [ask("q")], task="t")

    async def never(body: Mapping[str, Any], times: int) -> None:
        raise AssertionError("asked again")

    c = caller(ledger)
    (result,) = c.ask(FakeProvider(script=never), [ask("q")], task="t")
    assert isinstance(result, Answer)
    assert result.replayed
    assert (c.summary()[0]["calls"], c.summary()[0]["replayed"]) == (0, 1)


def test_a_reply_is_durable_before_it_is_handed_on(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        (result,) = caller(ledger).ask(FakeProvider(), [ask("q")], task="t")
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

        caller(ledger, concurrency=1).ask(FakeProvider(script=look), [ask("a"), ask("b")], task="t")
    assert states == [{"inflight": 1}, {"inflight": 1, "ok": 1}]


def test_one_poisoned_row_fails_alone(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "bad":
            raise Retryable("server_error", "HTTP 500", status=500)

    provider = FakeProvider(script=script)
    questions = ["one", "bad", *map(str, range(20))]
    c = caller(ledger, concurrency=2)
    results = c.ask(provider, [ask(q) for q in questions], task="t")
    assert [type(r) for r in results] == [Answer, Failure, *[Answer] * 20]
    assert provider.sent.count("bad") == 6
    assert c.summary()[0]["failures"] == {"server_error": 1}
    assert c.summary()[0]["retries"] == 5
    assert caller(ledger).ask(FakeProvider(), [ask("bad")], task="t")[0].key == results[1].key


@pytest.mark.parametrize("reason", ["server_error", "transport", "timeout"])
def test_the_breaker_counts_over_rows(ledger: Ledger, reason: str) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) != "0":
            raise Retryable(reason, "no")

    provider = FakeProvider(script=script)
    with pytest.raises(ProviderDown, match="12 calls in a row failed") as caught:
        caller(ledger).ask(provider, [ask(str(n)) for n in range(50)], task="t")
    assert caught.value.retryable
    assert caught.value.resume
    assert len(provider.sent) <= 1 + 12 + 4


def test_row_faults_do_not_open_the_breaker(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        raise Rejected("rejected", "HTTP 400") if int(said(body)) % 2 else Retryable("bad_envelope", "HTML")

    results = caller(ledger).ask(FakeProvider(script=script), [ask(str(n)) for n in range(30)], task="t")
    assert {r.reason for r in results if isinstance(r, Failure)} == {"rejected", "bad_envelope"}
    assert len(results) == 30


@pytest.mark.parametrize("error", [AuthError("no"), UsageError("no"), ZeroDivisionError("a bug")])
def test_a_fatal_error_stops_all_and_keeps_what_arrived(ledger: Ledger, error: Exception) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "5":
            raise error
        await asyncio.sleep(0.02)

    provider = FakeProvider(script=script)
    with pytest.raises(type(error)):
        caller(ledger).ask(provider, [ask(str(n)) for n in range(200)], task="t")
    assert len(provider.sent) < 30
    states = ledger.stats("run").states
    assert states["ok"] >= 4
    assert set(states) <= {"ok", "error", "cancelled"}


def test_calls_that_outlast_the_grace_are_in_doubt(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "bad":
            raise AuthError("no")
        await asyncio.sleep(60)

    with pytest.raises(AuthError):
        caller(ledger, grace=0.1).ask(FakeProvider(script=script), [ask("slow"), ask("bad")], task="t")
    assert ledger.stats("run").states == {"error": 1, "in_doubt": 1}


def test_a_sleeping_retry_does_not_hold_up_a_stop(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "bad":
            await asyncio.sleep(0.05)
            raise AuthError("no")
        raise Retryable("server_error", "HTTP 500")

    with pytest.raises(AuthError):
        caller(ledger, sleep=asyncio.sleep, grace=60).ask(
            FakeProvider(script=script), [ask("bad"), ask("other")], task="t"
        )


def test_a_rate_limit_holds_back_everybody(ledger: Ledger) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "0" and times == 0:
            raise Retryable("rate_limit", "HTTP 429", retry_after=30)

    told = Recorder()
    c = caller(ledger, concurrency=1, sleep=sleep, emit=told)
    results = c.ask(FakeProvider(script=script), [ask(str(n)) for n in range(5)], task="t")
    assert all(isinstance(r, Answer) for r in results)
    assert waits[0] >= 30
    assert len(waits) >= 5
    assert any("slow down" in text for text in told.texts())


def test_progress_reaches_the_total_and_is_seldom(ledger: Ledger) -> None:
    told = Recorder()
    caller(ledger, emit=told, concurrency=8).ask(
        FakeProvider(), [ask(str(n % 400)) for n in range(500)], task="ask"
    )
    seen = [e for e in told.events if isinstance(e, Progress)]
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, 500, 500)
    assert [e.done for e in seen] == sorted({e.done for e in seen})
    assert len(seen) <= 150
    assert {e.task for e in seen} == {"ask"}


def test_nothing_to_ask(ledger: Ledger) -> None:
    assert caller(ledger).ask(FakeProvider(), [], task="t") == []
    assert not ledger.path.exists()


def test_a_bad_concurrency() -> None:
    with pytest.raises(UsageError):
        Caller(Ledger(Path("x")), run_id="r", concurrency=0)


def test_a_stored_reply_that_this_version_cannot_read(ledger: Ledger) -> None:
    caller(ledger).ask(FakeProvider(), [ask("q")], task="t")

    class Newer(FakeProvider):
        def read(self, raw: bytes) -> Any:
            raise Retryable("bad_envelope", "another form")

    (result,) = caller(ledger).ask(Newer(), [ask("q")], task="t")
    assert isinstance(result, Failure)
    assert result.reason == "unreadable"


def test_a_damaged_reply_stops_the_work(ledger: Ledger) -> None:
    caller(ledger).ask(FakeProvider(), [ask("q")], task="t")
    ledger._writer.submit(lambda db: db.execute("UPDATE response SET body_z = x'00'")).result()
    with pytest.raises(IntegrityError, match="damaged reply"):
        caller(ledger).ask(FakeProvider(), [ask("q")], task="t")


def test_works_in_a_thread(ledger: Ledger) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        results = threads.submit(caller(ledger).ask, FakeProvider(), [ask("q")], task="t").result()
    assert texts(results) == ["fake says q"]
