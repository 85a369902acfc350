"""What is counted: replays, dry runs, calls in doubt, costs, use by a run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from provider_fakes import FakeBatch, FakeProvider, ask, asking, no_sleep, texts

from zephyrctl.errors import UsageError
from zephyrctl.events import Recorder
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import Price
from zephyrctl.providers.base import Retryable

CRASH = """
import os, sys
from pathlib import Path
from zephyrctl.ledger.entries import Intent, Request, Run
from zephyrctl.ledger.ledger import Ledger
with Ledger.open(Path(sys.argv[1])) as ledger:
    requests = [Request.of(provider="fake", origin="here", endpoint="/", model="fake:fake", body={"n": n}, draw=0)
                for n in range(3)]
    ledger.begin_many([Intent(r, 500_000) for r in requests], Run(sys.argv[2])).result()
    os._exit(9)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path) as opened:
        yield opened


def crash(path: Path, run: str = "run") -> None:
    """A process that dies with three calls in flight, of at most half a dollar each."""
    subprocess.run([sys.executable, "-c", CRASH, str(path), run], check=False)


def test_a_replay_sends_nothing_and_fails_nothing(ledger: Ledger) -> None:
    provider, local = FakeProvider(), FakeBatch()
    with asking(ledger) as caller:
        caller.ask(provider, [ask("a"), ask("b")], task="t")
    size = ledger.stats("run")
    with asking(ledger, replay=True) as caller:
        results = caller.ask_all(
            [(provider, ask("a")), (provider, ask("b")), (provider, ask("c")), (local, ask("d"))],
            task="answers",
        )
    assert texts(results) == ["fake says a", "fake says b", "<unpaid>", "<unpaid>"]
    assert (len(provider.sent), local.batches) == (2, [])
    assert [tally["failures"] for tally in caller.summary()] == [{}, {}]
    assert ledger.stats("run") == size


def test_a_replay_of_nothing_makes_no_ledger(ledger: Ledger, path: Path) -> None:
    with asking(ledger, replay=True) as caller:
        assert texts(caller.ask(FakeProvider(), [ask("a")], task="t")) == ["<unpaid>"]
    assert not path.exists()


def test_calls_in_doubt_are_told_once_with_their_price(path: Path) -> None:
    crash(path)
    told = Recorder()
    with Ledger.open(path) as ledger:
        with asking(ledger, emit=told) as caller:
            for question in "ab":
                caller.ask(FakeProvider(), [ask(question)], task="t")
        assert len(told.texts()) == 1
        assert "3 calls were in flight when an earlier process died" in told.texts()[0]
        assert "at most $1.50" in told.texts()[0]
        assert caller.spent().doubt == 1_500_000
        assert caller.summary()[0]["in_doubt"] == {"calls": 3, "usd": 1.5}


def test_calls_in_doubt_can_stop_the_work(path: Path) -> None:
    crash(path)
    provider = FakeProvider()
    with Ledger.open(path) as ledger:
        for _ in range(2):
            with asking(ledger, in_doubt="stop") as caller:
                for question in "ab":
                    with pytest.raises(UsageError, match="3 calls of this step") as caught:
                        caller.ask(provider, [ask(question)], task="t")
            assert "$1.50" in caught.value.message
            assert "in_doubt=resend" in str(caught.value.hint)
        assert provider.sent == []
        with asking(ledger, run="another", in_doubt="stop") as caller:
            caller.ask(provider, [ask("a")], task="t")
        with asking(ledger, in_doubt="stop") as caller:
            # All of it is there, so nothing would be sent anyway.
            assert texts(caller.ask(provider, [ask("a")], task="t")) == ["fake says a"]


def test_the_summary_of_a_model(ledger: Ledger) -> None:
    provider = FakeProvider()
    provider.price = Price(1000.0, 2000.0)

    async def script(body: Mapping[str, Any], times: int) -> None:
        if times == 0:
            raise Retryable("conflict", "HTTP 409")

    provider.script = script
    with asking(ledger, sleep=no_sleep) as caller:
        caller.ask(provider, [ask("a")], task="t")
    with asking(ledger, sleep=no_sleep) as caller:
        caller.ask(provider, [ask("a"), ask("b")], task="t")
    assert caller.summary() == [
        {
            "provider": "fake",
            "model": "fake:fake",
            "origin": "here",
            "served": ["fake"],
            "calls": 1,
            "replayed": 1,
            "tokens": {"prompt": 20, "cached": 0, "completion": 10, "reasoning": 0},
            "cost_usd": 0.02,
            "saved_usd": 0.02,
            "in_doubt": {"calls": 0, "usd": 0.0},
            "retries": 1,
            "outcomes": {"text": 2},
            "failures": {},
            "dropped": [],
            "ignored": {},
        }
    ]


def test_what_a_run_used_is_noted_replays_too(ledger: Ledger) -> None:
    with asking(ledger, run="first") as caller:
        fresh = caller.ask(FakeProvider(), [ask("a"), ask("b")], task="t")
    with asking(ledger, run="second") as caller:
        caller.ask(FakeProvider(), [ask("a")], task="t")
    used = ledger.read(lambda db: db.execute("SELECT run_id, key FROM used").fetchall())
    assert sorted(used) == sorted([("first", r.key) for r in fresh] + [("second", fresh[0].key)])


def test_a_dead_process_keeps_nobody_waiting(path: Path) -> None:
    crash(path)

    class Same(FakeProvider):
        def wire(self, ask: Any) -> dict[str, Any]:
            return {"n": 1}

        async def send(self, body: Mapping[str, Any]) -> Any:
            await asyncio.sleep(0)
            return await super().send({"messages": [{"content": "1"}]})

        def raw(self, body: Mapping[str, Any]) -> bytes:
            return b'{"text": "one"}'

    with Ledger.open(path) as ledger, asking(ledger) as caller:
        assert texts(caller.ask(Same(), [ask("x")], task="t")) == ["one"]
