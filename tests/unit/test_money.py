"""Prices and amounts: rounding never widens a limit, and a worst case is never exceeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.errors import UsageError
from zephyrctl.money import FREE, Price, Tokens, dollars, parse_price, to_uusd

rates = st.floats(0, 200, allow_nan=False)
counts = st.integers(0, 200_000)


def test_a_dollar_per_million_is_a_millionth_per_token() -> None:
    price = Price(3.0, 15.0, cached_input=0.3, cache_write=3.75)
    assert price.cost(Tokens(1000, 100)) == 1000 * 3 + 100 * 15
    assert price.cost(Tokens(1000, 100, cached=600, cache_write=100)) == 900 + 180 + 375 + 1500
    assert price.cost(Tokens(1000, 100), batch=True) == 2250
    assert FREE.cost(Tokens(10**9, 10**9)) == 0


def test_a_fraction_of_a_millionth_counts_as_a_whole_one() -> None:
    assert Price(0.1, 0.0).cost(Tokens(1, 0)) == 1
    assert Price(0.1, 0.0).cost(Tokens(30, 0)) == 3


@given(st.builds(Price, rates, rates, st.none() | rates, st.none() | rates), counts, counts, st.data())
def test_no_reply_within_its_bounds_costs_more_than_the_worst_case(
    price: Price, prompt: int, completion: int, data: st.DataObject
) -> None:
    sent = data.draw(st.integers(0, prompt))
    cached = data.draw(st.integers(0, sent))
    written = data.draw(st.integers(0, sent - cached))
    tokens = Tokens(sent, data.draw(st.integers(0, completion)), cached=cached, cache_write=written)
    for batch in (False, True):
        assert 0 <= price.cost(tokens, batch=batch) <= price.worst(prompt, completion, batch=batch)


@given(st.floats(0, 1e6, allow_nan=False))
def test_a_limit_is_never_widened_by_rounding(amount: float) -> None:
    assert to_uusd(amount) <= amount * 1_000_000 + 1e-3


@pytest.mark.parametrize(
    ("uusd", "text"),
    [(0, "$0.00"), (1_234_500_000, "$1,234.50"), (4200, "$0.0042"), (3, "$0.000003"), (250_000, "$0.2500")],
)
def test_amounts_for_people(uusd: int, text: str) -> None:
    assert dollars(uusd) == text


def test_a_price_as_typed() -> None:
    assert parse_price("in=3,out=15") == Price(3, 15, source="--price")
    assert parse_price("out=15, in=3, cached=0.3, batch=1") == Price(
        3, 15, 0.3, batch_factor=1, source="--price"
    )


@pytest.mark.parametrize(
    "text", ["", "3,15", "in=3", "in=3,out=-1", "in=3,out=nan", "in=3,out=x", "in=3,out=4,foo=1"]
)
def test_a_price_that_is_none(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_price(text)
    assert "in=3,out=15" in (caught.value.hint or "")
