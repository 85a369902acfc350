"""A few rows stand for all: the interval is exact where it can be and covers what it claims to."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.asking.pilot import forecast

COSTS = st.lists(st.floats(0, 1e6), min_size=2, max_size=40)


@given(COSTS, st.integers(0, 100_000))
def test_the_estimate_lies_in_its_interval_and_what_is_paid_is_below_it(
    costs: list[float], more: int
) -> None:
    found = forecast(costs, len(costs) + more)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.total * (1 + 1e-9) + 1e-6
    assert found.total <= found.high * (1 + 1e-9) + 1e-6
    assert found.low >= math.fsum(costs) * (1 - 1e-9)
    assert found.total == pytest.approx(found.each * found.rows)


@given(COSTS, st.integers(1, 1000), st.floats(0.5, 4))
def test_it_scales_with_the_currency(costs: list[float], more: int, factor: float) -> None:
    one = forecast(costs, len(costs) + more)
    other = forecast([factor * c for c in costs], len(costs) + more)
    assert other.total == pytest.approx(factor * one.total, abs=1e-6)
    assert other.high == pytest.approx(factor * (one.high or 0), rel=1e-6, abs=1e-3)


@given(st.floats(0, 1e6), st.integers(2, 30), st.integers(0, 1000))
def test_equal_rows_leave_no_doubt(cost: float, paid: int, more: int) -> None:
    found = forecast([cost] * paid, paid + more)
    assert found.total == pytest.approx(cost * (paid + more))
    assert found.low == pytest.approx(found.high, rel=1e-6, abs=1e-3)


@given(COSTS)
def test_a_pilot_of_all_rows_is_the_bill(costs: list[float]) -> None:
    found = forecast(costs, len(costs))
    assert found.low == found.total == found.high == pytest.approx(math.fsum(costs))


def test_one_row_tells_no_interval() -> None:
    found = forecast([1500.0], 1000)
    assert (found.total, found.low, found.high) == (1_500_000, None, None)
    assert "one row tells no interval" in found.sentence()
    assert found.as_dict()["usd"]["total"] == 1.5


@pytest.mark.parametrize(("costs", "rows"), [([], 5), ([1.0, 2.0, 3.0], 2)])
def test_what_cannot_be_a_pilot_is_refused(costs: list[float], rows: int) -> None:
    with pytest.raises(ValueError, match="cannot stand for"):
        forecast(costs, rows)


@pytest.mark.parametrize(("paid", "rows"), [(5, 200), (20, 40), (50, 2000)])
def test_the_interval_covers_the_true_total_about_95_times_in_100(paid: int, rows: int) -> None:
    rng = random.Random(7)
    hits = 0
    for _ in range(400):
        costs = [max(0.0, rng.gauss(1000, 250)) for _ in range(rows)]
        found = forecast(costs[:paid], rows)
        hits += (found.low or 0) <= math.fsum(costs) <= (found.high or 0)
    assert 0.92 <= hits / 400 <= 0.98


def test_the_sentence_says_what_was_paid_and_what_is_to_come() -> None:
    sentence = forecast([1000.0, 3000.0, 2000.0], 1000).sentence()
    assert sentence.startswith("3 of 1000 rows cost $0.0020 each on average; all rows: $2.00 (95 %: $0.0")
