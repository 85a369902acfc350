"""What an endpoint silently leaves out is found and told once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from provider_fakes import FakeProvider, ask, asking, said

from zephyrctl.events import Recorder
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Answer, Ask, Sampling, Schema

LONG = "a long answer that nobody gives twice by chance, "


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def draws(count: int, temperature: float = 1.0, **more: Any) -> list[Ask]:
    """Two draws of each of `count` questions, each draw with its own seed."""
    return [
        replace(ask(LONG + str(n), draw), sampling=Sampling(temperature=temperature, seed=n + draw), **more)
        for n in range(count)
        for draw in (0, 1)
    ]


def warnings(ledger: Ledger, provider: FakeProvider, *waves: list[Ask]) -> tuple[list[str], dict[str, int]]:
    told = Recorder()
    with asking(ledger, emit=told) as caller:
        for wave in waves:
            caller.ask(provider, wave, task="t")
    return told.texts(), caller.summary()[0]["ignored"]


def test_equal_draws_are_told_once(ledger: Ledger) -> None:
    texts, counts = warnings(ledger, FakeProvider(), draws(2), draws(9))
    assert [t for t in texts if "equal texts" in t] == texts
    assert (len(texts), counts) == (1, {"draws": 1})


@pytest.mark.parametrize(
    "asks", [draws(2), draws(9, temperature=0.0), [ask(LONG + str(n)) for n in range(9)]]
)
def test_too_few_or_greedy_draws_say_nothing(ledger: Ledger, asks: list[Ask]) -> None:
    assert warnings(ledger, FakeProvider(), asks) == ([], {})


def test_draws_that_differ_once_prove_that_they_are_drawn(ledger: Ledger) -> None:
    class Drawn(FakeProvider):
        def wire(self, ask: Ask) -> dict[str, Any]:
            body = super().wire(ask)
            body["messages"][0]["content"] += f" {ask.draw}" if said(body).endswith("0") else ""
            return body

    assert warnings(ledger, Drawn(), draws(9)) == ([], {})


def test_short_answers_may_be_equal(ledger: Ledger) -> None:
    class Judge(FakeProvider):
        def read(self, raw: bytes) -> Any:
            return replace(super().read(raw), text="Rating: 4")

    assert warnings(ledger, Judge(), draws(9)) == ([], {})


def test_missing_fields_are_counted_and_told_at_the_end(ledger: Ledger) -> None:
    provider = FakeProvider()
    provider.usage = lambda body: None  # type: ignore[method-assign]
    asks = [
        replace(ask(str(n)), sampling=Sampling(logprobs=0), schema=Schema("s", {"type": "object"}))
        for n in range(3)
    ]
    texts, counts = warnings(ledger, provider, asks)
    assert counts == {"logprobs": 3, "schema": 3, "usage": 3}
    assert len(texts) == 3
    assert any("3 replies without the log-probabilities" in t for t in texts)
    assert any("3 replies that are not JSON" in t for t in texts)


def test_what_was_never_sent_cannot_be_ignored(ledger: Ledger) -> None:
    provider = FakeProvider()
    provider.dropped = ("logprobs", "schema")
    asks = [replace(ask("q"), sampling=Sampling(logprobs=0), schema=Schema("s", {}))]
    assert warnings(ledger, provider, asks)[1] == {}


def test_json_is_what_a_schema_asks_for(ledger: Ledger) -> None:
    class Typed(FakeProvider):
        def read(self, raw: bytes) -> Any:
            return replace(super().read(raw), text='{"rating": 4}')

    asks = [replace(ask("q"), schema=Schema("s", {}))]
    assert warnings(ledger, Typed(), asks) == ([], {})
    with asking(ledger) as caller:
        assert isinstance(caller.ask(Typed(), asks, task="t")[0], Answer)
