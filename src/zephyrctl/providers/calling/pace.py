"""Requests and tokens per minute: how long the next call has to wait.

Pure: the caller brings the clock (seconds).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MINUTE = 60.0
_BURST = 12.0
"""A burst is at most one twelfth of a minute's allowance: many servers look at parts of a minute, too."""
_SHARE_AT_FIRST = 0.25
_MARGIN = 1.25
_INSTANT = 1e-6
"""Seconds and units below which nothing is worth a wait."""
_LETTERS_PER_TOKEN = 4


@dataclass
class Entry:
    """What one call took from an allowance."""

    time: float
    amount: float


class Allowance:
    """At most `limit` units in any minute, spread over it.

    An amount above the whole limit goes alone.
    """

    def __init__(self, limit: float) -> None:
        self.limit = float(limit)
        self._rate = self.limit / MINUTE
        self._burst = max(1.0, self.limit / _BURST)
        self._level = self._burst
        self._when = 0.0
        self._log: deque[Entry] = deque()
        self._used = 0.0

    def wait(self, now: float, amount: float) -> float:
        """Seconds until `amount` may be taken; 0 = now."""
        self._advance(now)
        amount = min(amount, self.limit)
        short = min(amount, self._burst) - self._level
        wait = max(short / self._rate, self._until_free(now, amount))
        return wait if wait > _INSTANT else 0.0

    def take(self, now: float, amount: float) -> Entry:
        """Take `amount`."""
        self._advance(now)
        entry = Entry(now, amount)
        self._log.append(entry)
        self._used += amount
        self._level -= amount
        return entry

    def correct(self, entry: Entry, actual: float) -> None:
        """A call took `actual` after all. What it did not take is free again."""
        difference = actual - entry.amount
        entry.amount = actual
        self._used += difference
        self._level = min(self._burst, self._level - difference)

    def _advance(self, now: float) -> None:
        self._level = min(self._burst, self._level + max(0.0, now - self._when) * self._rate)
        self._when = max(self._when, now)
        while self._log and self._log[0].time <= now - MINUTE + _INSTANT:
            self._used -= self._log.popleft().amount
        if not self._log:
            self._used = 0.0

    def _until_free(self, now: float, amount: float) -> float:
        excess = self._used + amount - self.limit
        if excess <= _INSTANT:
            return 0.0
        for entry in self._log:
            excess -= entry.amount
            if excess <= _INSTANT:
                return entry.time + MINUTE - now
        return 0.0


@dataclass
class Taken:
    """What one call took: its tokens are known better when its reply is there."""

    requests: Entry | None = None
    tokens: Entry | None = None


class Pace:
    """Both limits of one model. Tokens are estimated before a call and corrected by what it used."""

    def __init__(self, rpm: int | None, tpm: int | None) -> None:
        self._requests = Allowance(rpm) if rpm else None
        self._tokens = Allowance(tpm) if tpm else None
        self._mean: float | None = None

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self._requests is not None or self._tokens is not None

    def estimate(self, size: int, most_out: int) -> float:
        """Tokens of a call with a body of `size` bytes and at most `most_out` tokens of output."""
        out = _SHARE_AT_FIRST * most_out if self._mean is None else _MARGIN * self._mean
        return size / _LETTERS_PER_TOKEN + min(out, float(most_out))

    def wait(self, now: float, tokens: float) -> float:
        """Seconds until a call of `tokens` may go; 0 = now."""
        return max(
            self._requests.wait(now, 1.0) if self._requests else 0.0,
            self._tokens.wait(now, tokens) if self._tokens else 0.0,
        )

    def take(self, now: float, tokens: float) -> Taken:
        """A call goes out."""
        return Taken(
            self._requests.take(now, 1.0) if self._requests else None,
            self._tokens.take(now, tokens) if self._tokens else None,
        )

    def give_back(self, taken: Taken) -> None:
        """The call was not sent after all."""
        if self._requests and taken.requests:
            self._requests.correct(taken.requests, 0.0)
        if self._tokens and taken.tokens:
            self._tokens.correct(taken.tokens, 0.0)

    def correct(self, taken: Taken, prompt: int, completion: int) -> None:
        """What the call used, as the provider counted it."""
        self._mean = float(completion) if self._mean is None else self._mean + (completion - self._mean) / 16
        if self._tokens and taken.tokens:
            self._tokens.correct(taken.tokens, float(prompt + completion))
