"""Requests and tokens per minute, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.providers.calling.pace import MINUTE, Allowance, Pace


def run(allowance: Allowance, amounts: list[float], gaps: list[float]) -> list[tuple[float, float]]:
    """Take the amounts as early as allowed; what went out when."""
    now, out = 0.0, []
    for amount, gap in zip(amounts, gaps, strict=True):
        now += gap
        while (wait := allowance.wait(now, amount)) > 0:
            now += wait
        allowance.take(now, amount)
        out.append((now, amount))
    return out


@settings(max_examples=80, deadline=None)
@given(
    limit=st.integers(1, 300),
    calls=st.lists(st.tuples(st.floats(0, 400), st.floats(0, 3)), min_size=1, max_size=200),
)
def test_no_minute_holds_more_than_the_limit(limit: int, calls: list[tuple[float, float]]) -> None:
    out = run(Allowance(limit), [amount for amount, _ in calls], [gap for _, gap in calls])
    for place, (start, _) in enumerate(out):
        within = [amount for when, amount in out[place:] if when < start + MINUTE - 1e-5]
        # An amount above the whole limit can only go alone.
        assert sum(within) <= max(limit, *within, 0.0) + 1e-3


@settings(max_examples=50, deadline=None)
@given(limit=st.integers(1, 2000), calls=st.integers(2, 400))
def test_requests_are_spread_and_lose_no_time(limit: int, calls: int) -> None:
    out = run(Allowance(limit), [1.0] * calls, [0.0] * calls)
    at_once = sum(when == 0.0 for when, _ in out)
    assert at_once <= max(1, limit // 12 + 1)
    assert out[-1][0] <= calls / limit * MINUTE + 1e-6


def test_what_was_not_used_is_free_again() -> None:
    allowance = Allowance(120)
    first = allowance.take(0.0, 10.0)
    assert allowance.wait(0.0, 10.0) > 0
    allowance.correct(first, 0.0)
    assert allowance.wait(0.0, 10.0) == 0


def test_what_was_used_on_top_is_waited_for() -> None:
    allowance = Allowance(120)
    first = allowance.take(0.0, 1.0)
    allowance.correct(first, 120.0)
    assert allowance.wait(1.0, 1.0) == pytest.approx(59.0, abs=2.0)


def test_estimates_follow_what_calls_really_take() -> None:
    pace = Pace(None, 60_000)
    assert pace.limited
    first = pace.estimate(400, 4000)
    assert first == 100 + 1000
    for _ in range(50):
        pace.correct(pace.take(0.0, 0.0), 100, 40)
    assert pace.estimate(400, 4000) == pytest.approx(100 + 50, rel=0.01)
    assert pace.estimate(400, 20) == 120


def test_without_limits_nothing_waits() -> None:
    pace = Pace(None, None)
    assert not pace.limited
    assert pace.wait(0.0, 1e9) == 0


def test_a_call_that_was_not_sent_gives_back_all() -> None:
    pace = Pace(12, 1200)
    taken = pace.take(0.0, 100.0)
    assert pace.wait(0.0, 100.0) > 0
    pace.give_back(taken)
    assert pace.wait(0.0, 100.0) == 0
