"""How long to wait before asking again.

Pure: what a server said and which attempt it was decide, nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class Retry:
    """The bounds of trying again. Times in seconds.

    `attempts` bounds failures of one row; waits for a rate limit are bounded by `max_wait` in all instead,
    because the server is alive and says when to come back.
    """

    attempts: int = 6
    first: float = 1.0
    ceiling: float = 60.0
    max_wait: float = 600.0

    def backoff(self, key: str, n: int) -> float:
        """The wait after failure `n` (0-based).

        Doubling, with a jitter of up to one half drawn from key and n.
        """
        whole = min(self.ceiling, self.first * 2.0 ** min(n, 30))
        return whole * (0.5 + 0.5 * share(key, n))

    def rate_limit(self, key: str, n: int, asked: float | None) -> float:
        """The wait of one row after its rate limit `n` (0-based).

        What the server asked, where it asked; repeated limits slow down in any case. Without a time the row only
        steps back for a moment at first: that fewer calls go out is the limiter's work.
        """
        own = self.backoff(key, n)
        if asked is not None:
            return max(asked, min(own, 8 * self.first))
        return own * min(1.0, 2.0 ** (n - 4))


def share(key: str, n: int) -> float:
    """A number in [0, 1) that depends on `key` and `n` alone."""
    digest = hashlib.sha256(f"{key}\x1f{n}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def retry_after(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Seconds that a reply's headers ask to wait, None where they say nothing usable.

    Header names in lower case.

    Reads `retry-after-ms`, then `retry-after` as a number or a date. A date is measured against the server's
    own `date` header, so that a wrong local clock does not matter; `now` stands in where that is missing.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None:
        return max(0.0, seconds)
    until = _date(text)
    if until is None:
        return None
    start = _date(headers.get("date")) or now or datetime.now(UTC)
    return max(0.0, (until - start).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        value = float((text or "").strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _date(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        value = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)
