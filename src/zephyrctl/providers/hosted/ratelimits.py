"""What the headers of a reply say about rate limits: whether none are left, and for how long."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_OPENAI = ("requests", "tokens")
_ANTHROPIC = ("requests", "tokens", "input-tokens", "output-tokens")


def rest_of(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Seconds until the endpoint takes further calls, where it says that none are left; None otherwise.

    Header names in lower case. Anthropic's reset times are measured against the server's own `date` header; `now`
    stands in where that is missing.
    """
    waits = [
        _span(headers.get(f"x-ratelimit-reset-{what}"))
        for what in _OPENAI
        if _none_left(headers.get(f"x-ratelimit-remaining-{what}"))
    ]
    spent = [w for w in _ANTHROPIC if _none_left(headers.get(f"anthropic-ratelimit-{w}-remaining"))]
    if spent:
        start = _date(headers.get("date")) or now or datetime.now(UTC)
        waits += [_until(headers.get(f"anthropic-ratelimit-{w}-reset"), start) for w in spent]
    return max((wait for wait in waits if wait is not None and math.isfinite(wait)), default=None)


def _none_left(text: str | None) -> bool:
    return text is not None and text.strip() in ("0", "-1")


def _span(text: str | None) -> float | None:
    """`1s`, `6m0s`, `20ms`, `1h2m3.5s`, or a plain number of seconds."""
    text = (text or "").strip()
    if not text:
        return None
    parts = _SPAN.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def _until(text: str | None, start: datetime) -> float | None:
    try:
        when = datetime.fromisoformat((text or "").strip())
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - start).total_seconds())


def _date(text: str | None) -> datetime | None:
    try:
        value = parsedate_to_datetime(text) if text else None
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)
