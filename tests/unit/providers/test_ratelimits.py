"""What headers say about rate limits."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.providers.hosted.ratelimits import rest_of

DATE = "Sun, 22 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1h2m3.5s", 3723.5),
        ("12", 12.0),
        ("0.25", 0.25),
        ("2d", 172800.0),
    ],
)
def test_openai(reset: str, seconds: float) -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
    assert rest_of(headers) == pytest.approx(seconds)
    both = {**headers, "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "500s"}
    assert rest_of(both) == max(500.0, seconds)
    assert rest_of({**headers, "x-ratelimit-remaining-requests": "1"}) is None


@pytest.mark.parametrize("reset", ["", "soon", "6m and more", "1x", "-5s", None])
def test_a_reset_that_says_nothing(reset: str | None) -> None:
    headers = {"x-ratelimit-remaining-tokens": "0"}
    assert rest_of(headers if reset is None else {**headers, "x-ratelimit-reset-tokens": reset}) is None


@pytest.mark.parametrize("what", ["requests", "tokens", "input-tokens", "output-tokens"])
def test_anthropic_is_measured_by_its_own_clock(what: str) -> None:
    headers = {
        f"anthropic-ratelimit-{what}-remaining": "0",
        f"anthropic-ratelimit-{what}-reset": "2026-11-22T12:00:30Z",
    }
    wrong = datetime(2031, 1, 1, tzinfo=UTC)
    assert rest_of({**headers, "date": DATE}, now=wrong) == 30.0
    assert rest_of(headers, now=datetime(2026, 11, 22, 12, 0, 10, tzinfo=UTC)) == 20.0
    assert rest_of(headers, now=wrong) == 0.0
    assert rest_of({**headers, f"anthropic-ratelimit-{what}-reset": "later", "date": DATE}) is None
    assert rest_of({**headers, f"anthropic-ratelimit-{what}-remaining": "7", "date": DATE}) is None


NAMES = st.sampled_from(
    [
        *(f"x-ratelimit-{a}-{b}" for a in ("remaining", "reset") for b in ("requests", "tokens")),
        "anthropic-ratelimit-tokens-remaining",
        "anthropic-ratelimit-tokens-reset",
        "date",
    ]
)


@given(st.dictionaries(NAMES, st.sampled_from(["0", "1s", DATE, "2026-11-22", "x"]) | st.text(max_size=8)))
def test_any_headers(headers: dict[str, str]) -> None:
    rest = rest_of(headers)
    assert rest is None or rest >= 0
