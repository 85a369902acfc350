"""What models cost: read from the table that comes with a package, tiers included, never less than the worst case."""

from __future__ import annotations

import socket
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.money import Price, Tokens
from zephyrctl.providers.prices import TieredPrice, known_price

TODAY = date(2026, 11, 22)


def test_prices_are_dated_and_read_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **more: object) -> None:
        raise AssertionError("a price was looked up over the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    price = known_price("openai", "gpt-4o", TODAY)
    assert price is not None
    assert (price.input, price.output, price.cached_input) == (2.5, 10.0, 1.25)
    assert price.source.startswith("genai-prices 0.")
    assert "2026-11-22" in price.source
    claude = known_price("anthropic", "claude-opus-5", TODAY)
    assert claude is not None
    assert (claude.input, claude.output, claude.cached_input, claude.cache_write) == (5.0, 25.0, 0.5, 6.25)


def test_the_price_of_the_day() -> None:
    before, after = (known_price("openai", "gpt-5.6-luna", day) for day in (date(2026, 7, 1), TODAY))
    assert before is not None
    assert after is not None
    assert before.input > after.input


def test_a_model_without_a_price() -> None:
    assert known_price("openai", "gpt-test", TODAY) is None
    assert known_price("openai", "whisper-1", TODAY) is None


def test_a_long_prompt_costs_the_tier_it_falls_into() -> None:
    price = known_price("openai", "gpt-6-sol", TODAY)
    assert isinstance(price, TieredPrice)
    start = price.start
    short, long = price.cost(Tokens(start, 10)), price.cost(Tokens(start + 1, 10))
    assert short == round(start * price.input + 10 * price.output)
    assert long == round((start + 1) * price.above.input + 10 * price.above.output)
    assert price.worst(start, 10) < price.worst(start + 1, 10)


PRICES = st.builds(
    Price,
    st.floats(0, 100),
    st.floats(0, 100),
    st.none() | st.floats(0, 100),
    st.none() | st.floats(0, 100),
)


@given(low=PRICES, high=PRICES, start=st.integers(0, 2000), data=st.data())
def test_no_reply_costs_more_than_was_reserved(
    low: Price, high: Price, start: int, data: st.DataObject
) -> None:
    price = TieredPrice(low.input, low.output, low.cached_input, low.cache_write, start=start, above=high)
    prompt_bound, completion_bound = data.draw(st.integers(0, 4000)), data.draw(st.integers(0, 4000))
    prompt = data.draw(st.integers(0, prompt_bound))
    cached = data.draw(st.integers(0, prompt))
    written = data.draw(st.integers(0, prompt - cached))
    tokens = Tokens(prompt, data.draw(st.integers(0, completion_bound)), cached, written)
    for batch in (False, True):
        assert price.cost(tokens, batch=batch) <= price.worst(prompt_bound, completion_bound, batch=batch)
