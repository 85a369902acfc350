"""Permutation tests within blocks (a prompt's texts), and the sums they need. Pure, standard library only.

What a test says: were the labels (places shown, lengths, own or other family) dealt anew within every block, how often
would the statistic be as far from what is expected as it was? With `FEW` blocks or fewer it is counted over
`DRAWS` seeded permutations, (1 + as far) / (1 + draws); with more, the exact mean and variance over all permutations
of every block are added up and the sum is read off the normal (or, for several places at once, the chi-squared)
distribution: for values x and y of a block of m, centred, sum(x * y) over permutations has mean 0 and variance
sum(x^2) * sum(y^2) / (m - 1) (Hoeffding 1951, for a bilinear statistic).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

FEW = 30
DRAWS = 999
_SLACK = 1e-9

Block = tuple[Sequence[float], Sequence[float]]
"""Two values for each text of a prompt, such as length and score."""


@dataclass(frozen=True, slots=True)
class Slope:
    """How much y rises with x within blocks. Both None = x or y never varies within a block; `p` None alone = too few
    blocks to tell."""

    value: float | None
    p: float | None
    blocks: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What a place does to ratings. `trend`: first minus last place, along a straight line, in points; `p_trend`
    and `p_any` (any pattern of the places) are two-sided, `p` is the smaller of them, doubled."""

    trend: float | None
    p_trend: float | None
    p_any: float | None
    blocks: int

    @property
    def p(self) -> float | None:
        """One p-value for both questions (Bonferroni)."""
        found = [p for p in (self.p_trend, self.p_any) if p is not None]
        return min(1.0, len(found) * min(found)) if found else None


def slope(blocks: Sequence[Block], name: str, spent: int = 0) -> Slope:
    """The slope of y on x within blocks, and how often dealing x anew within blocks gives one as steep.

    `name` seeds the draws together with the values. The order of the blocks changes nothing. `spent`: the degrees of
    freedom that were taken out of x and y before, besides one for each block. What is left hangs together across
    blocks then, so that what is dealt anew varies less than chance does: it is scaled up by the freedom there would be
    over what is left, and without any left there is no p-value.
    """
    every = sorted(_centred(x, y) for x, y in blocks)
    centred = [(x, y) for x, y in every if _varies(x) and _varies(y)]
    total = math.fsum(_product(x, y) for x, y in centred)
    spread = math.fsum(_product(x, x) for x, _ in every)
    if not centred or spread <= 0:
        return Slope(None, None, len(centred))
    variance = math.fsum(_product(x, x) * _product(y, y) / (len(x) - 1) for x, y in centred)
    freedom = sum(len(x) - 1 for x, _ in every)
    if freedom <= spent:
        return Slope(total / spread, None, len(centred))
    wider = math.sqrt(freedom / (freedom - spent))
    p: float
    if len(centred) > FEW:
        p = normal_tail(total / math.sqrt(variance) / wider)
    else:
        rng = _rng(name, centred)
        shuffled = [(list(x), y) for x, y in centred]
        hits = 0
        for _ in range(DRAWS):
            drawn = 0.0
            for x, y in shuffled:
                rng.shuffle(x)
                drawn += _product(x, y)
            hits += wider * abs(drawn) >= abs(total) - _SLACK
        p = (1 + hits) / (1 + DRAWS)
    return Slope(total / spread, p, len(centred))


def places(profiles: Sequence[Sequence[float]], weight: float, name: str) -> Profile:
    """Whether ratings depend on the place in which a text was shown.

    A profile is a prompt's sum of ratings in each place, first to last, with what belongs to the texts and to the
    aspects taken out; the place's name is dealt anew within each prompt. `weight` is the sum over all ratings of
    their squared place score (1/2 for the first place down to -1/2 for the last): what turns the sum into points.
    """
    centred = sorted(tuple(v - math.fsum(p) / len(p) for v in p) for p in profiles if _varies(p))
    if not centred or weight <= 0:
        return Profile(None, None, None, len(centred))
    trend, squared = _trend(centred), _any(centred)
    if len(centred) > FEW:
        variance = math.fsum(
            _product(place_scores(len(p)), place_scores(len(p))) * _product(p, p) / (len(p) - 1)
            for p in centred
        )
        freedom = sum(size - 1 for size in {len(p) for p in centred})
        p_trend, p_any = normal_tail(trend / math.sqrt(variance)), chi_squared_tail(squared, freedom)
    else:
        rng = _rng(name, centred)
        drawn = [list(p) for p in centred]
        steep = far = 0
        for _ in range(DRAWS):
            for p in drawn:
                rng.shuffle(p)
            steep += abs(_trend(drawn)) >= abs(trend) - _SLACK
            far += _any(drawn) >= squared - _SLACK
        p_trend, p_any = (1 + steep) / (1 + DRAWS), (1 + far) / (1 + DRAWS)
    return Profile(trend / weight, p_trend, p_any, len(centred))


def place_scores(shown: int) -> list[float]:
    """The score of each of `shown` places: 1/2 for the first, -1/2 for the last, evenly between; 0 for a single
    one."""
    return [0.0] if shown == 1 else [0.5 - place / (shown - 1) for place in range(shown)]


def _trend(profiles: Sequence[Sequence[float]]) -> float:
    return math.fsum(_product(place_scores(len(p)), p) for p in profiles)


def _any(profiles: Sequence[Sequence[float]]) -> float:
    """The sum over prompts of each size of squared place sums over their variance: chi-squared with places - 1
    degrees of freedom for each size, as relabelled places have covariance -1 / (places - 1)."""
    total = 0.0
    for size in sorted({len(p) for p in profiles}):
        group = [p for p in profiles if len(p) == size]
        sums = [math.fsum(p[place] for p in group) for place in range(size)]
        variance = math.fsum(_product(p, p) for p in group) / size
        total += (size - 1) / size * math.fsum(s * s for s in sums) / variance
    return total


def normal_tail(z: float) -> float:
    """The chance that a standard normal value is as far from 0 as `z`, on either side."""
    return math.erfc(abs(z) / math.sqrt(2))


def chi_squared_tail(value: float, freedom: int) -> float:
    """The chance that a chi-squared value with `freedom` degrees of freedom is at least `value`.

    Closed forms for whole and half shapes of the incomplete gamma function (Abramowitz & Stegun 26.4.4-5).
    """
    half = max(0.0, value) / 2
    if freedom % 2 == 0:
        total, term = 0.0, 1.0
        for k in range(freedom // 2):
            term = term * half / k if k else 1.0
            total += term
        return min(1.0, math.exp(-half) * total)
    total, term = math.erfc(math.sqrt(half)), 2 * math.sqrt(half / math.pi) * math.exp(-half)
    for k in range(1, (freedom + 1) // 2):
        total += term
        term = term * half / (k + 0.5)
    return min(1.0, total)


def _centred(x: Sequence[float], y: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    return tuple(v - mean_x for v in x), tuple(v - mean_y for v in y)


def _varies(values: Sequence[float]) -> bool:
    return max(values) - min(values) > _SLACK


def _product(x: Sequence[float], y: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def _rng(name: str, values: object) -> random.Random:
    return random.Random(int.from_bytes(hashlib.sha256(f"{name}\x1f{values!r}".encode()).digest()[:8], "big"))
