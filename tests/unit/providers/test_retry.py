"""Waiting times are pure: bounded, growing, and as the server asked in every form of Retry-After."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.providers.calling.retry import Retry, retry_after, share


@given(key=st.text(), n=st.integers(0, 10**6))
def test_backoff_is_bounded_and_repeatable(key: str, n: int) -> None:
    retry = Retry(first=1.0, ceiling=60.0)
    wait = retry.backoff(key, n)
    assert wait == retry.backoff(key, n)
    assert min(60.0, 2.0 ** min(n, 20)) / 2 <= wait <= 60.0
    assert 0 <= share(key, n) < 1


@given(key=st.text(), n=st.integers(0, 50), asked=st.floats(0, 1e9))
def test_a_server_is_never_asked_before_it_said(key: str, n: int, asked: float) -> None:
    retry = Retry()
    assert retry.rate_limit(key, n, asked) >= asked
    assert 0 < retry.rate_limit(key, n, None) <= retry.backoff(key, n)
    assert retry.rate_limit(key, n, asked) > 0


@given(key=st.text())
def test_without_a_time_a_row_steps_back_for_a_moment_and_then_for_longer(key: str) -> None:
    retry = Retry(first=1.0, ceiling=60.0)
    assert retry.rate_limit(key, 0, None) <= 1 / 16
    assert retry.rate_limit(key, 20, None) >= 30


NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
AT_12_00_30 = "Sun, 22 Nov 2026 12:00:30 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "1000000000"}, 1e9),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
        ({"retry-after": AT_12_00_30}, 30.0),
        ({"retry-after": AT_12_00_30, "date": "Sun, 22 Nov 2026 12:00:10 GMT"}, 20.0),
        ({"retry-after": AT_12_00_30, "date": "Sun, 22 Nov 2026 13:00:00 GMT"}, 0.0),
        ({"retry-after": "Sun, 99 Foo 2026 12:00:30"}, None),
    ],
)
def test_every_form_of_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=NOW) == seconds


@given(st.text())
def test_no_header_breaks_it(text: str) -> None:
    value = retry_after({"retry-after": text, "retry-after-ms": text, "date": text}, now=NOW)
    assert value is None or value >= 0
