"""How far two rounds of ratings of the same texts agree: two judges, or one judge asked twice. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from zephyrctl.judges.exact import fixed, unfixed

SAME = 1e-9
"""Scores that differ by no more than this are equal: a mean of ratings is exact to far less."""


def best_of(scores: Sequence[float | None]) -> set[int]:
    """Where the highest score stands; several places where it is shared, none where there is no score."""
    known = [s for s in scores if s is not None]
    return {i for i, s in enumerate(scores) if s is not None and s >= max(known) - SAME} if known else set()


def tau_b(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Kendall's tau-b (1945): agreement of two rankings from -1 to 1, ties allowed; None where a side is all
    tied."""
    up = down = tied_one = tied_other = pairs = 0
    for (a, x), (b, y) in combinations(zip(one, other, strict=True), 2):
        first, second = _sign(a - b), _sign(x - y)
        pairs += 1
        tied_one += first == 0
        tied_other += second == 0
        up += first * second > 0
        down += first * second < 0
    spread = (pairs - tied_one) * (pairs - tied_other)
    return (up - down) / math.sqrt(spread) if spread else None


def _sign(value: float) -> int:
    return 0 if abs(value) <= SAME else 1 if value > 0 else -1


@dataclass
class Closeness:
    """How near the ratings of equal texts are to each other."""

    both: int = 0
    missing: int = 0
    """Ratings that the first round has and the second lacks."""
    exact: int = 0
    near: int = 0
    apart: int = 0

    def add(self, first: float | None, second: float | None) -> None:
        """One rating in both rounds."""
        if first is None or second is None:
            self.missing += first is not None
            return
        distance = abs(first - second)
        self.both += 1
        self.exact += distance <= SAME
        self.near += distance <= 1 + SAME
        self.apart += fixed(distance)

    def as_dict(self) -> dict[str, object]:
        """Shares and the mean distance, and the number of ratings they stand on."""
        return {
            "ratings": self.both,
            "missing": self.missing,
            "exact": share(self.exact, self.both),
            "within_one": share(self.near, self.both),
            "mean_distance": share(unfixed(self.apart), self.both),
        }


@dataclass
class Agreement:
    """Counts of what agrees, row by row; the order of the rows changes nothing."""

    rows: int = 0
    why: Counter[str] = field(default_factory=Counter)
    judged: int = 0
    """Rows in which both rounds have a best text."""
    same_best: int = 0
    ranked: int = 0
    """Rows in which both rounds have a ranking, so that tau-b exists."""
    taus: int = 0
    aspects: Closeness = field(default_factory=Closeness)
    overall: Closeness = field(default_factory=Closeness)

    def row(self, why: str, first: Sequence[float | None], second: Sequence[float | None]) -> None:
        """One prompt: the scores of its texts in both rounds."""
        self.rows += 1
        self.why[why] += 1
        one, other = best_of(first), best_of(second)
        if one and other:
            self.judged += 1
            self.same_best += one == other
        both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
        tau = tau_b([a for a, _ in both], [b for _, b in both])
        if tau is not None:
            self.ranked += 1
            self.taus += fixed(tau)

    def as_dict(self) -> dict[str, object]:
        """Shares and means, with the numbers they stand on; None where there is nothing to divide by."""
        return {
            "rows": self.rows,
            "why": dict(sorted(self.why.items())),
            "same_best": share(self.same_best, self.judged),
            "kendall_tau_b": share(unfixed(self.taus), self.ranked),
            "aspects": self.aspects.as_dict(),
            "overall": self.overall.as_dict(),
        }


def share(part: float, whole: int) -> float | None:
    """`part` of `whole`, to six places; None of nothing."""
    return round(part / whole, 6) if whole else None
