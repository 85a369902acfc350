"""Sums that do not depend on the order of their terms: numbers as whole multiples of 2**-40."""

from __future__ import annotations

_UNIT = 1 << 40


def fixed(value: float) -> int:
    """A finite number as a whole multiple of 2**-40 (about 1e-12); whole numbers add up exactly in any order."""
    return round(value * _UNIT)


def unfixed(total: int) -> float:
    """The number that a sum of `fixed` values stands for."""
    return total / _UNIT
