"""From the first rows to all of them: what the rest will cost, with an interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from zephyrctl.money import UUSD, dollars
from zephyrctl.student_t import student_t_quantile

_UPPER = 0.975


@dataclass(frozen=True)
class Forecast:
    """The cost of `rows` rows from `paid` of them, in uusd. `low` and `high` bound a 95 % interval, None where one
    row alone tells nothing about the spread."""

    paid: int
    rows: int
    each: float
    total: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, in US dollars."""
        amounts = {"per_row": self.each, "total": self.total, "low": self.low, "high": self.high}
        return {
            "paid_rows": self.paid,
            "rows": self.rows,
            "usd": {name: None if v is None else round(v / UUSD, 6) for name, v in amounts.items()},
        }

    def sentence(self) -> str:
        """For people."""
        if self.low is None or self.high is None:
            between = "one row tells no interval"
        else:
            between = f"95 %: {dollars(self.low)} to {dollars(self.high)}"
        return (
            f"{self.paid} of {self.rows} rows cost {dollars(self.each)} each on average; "
            f"all rows: {dollars(self.total)} ({between})"
        )


def forecast(costs: Sequence[float], rows: int) -> Forecast:
    """What `rows` rows cost in all when the first of them cost `costs`.

    The rows paid for are known; the others are drawn like them: their sum has the spread of the mean and their own.
    Raises ValueError without costs, or with more costs than rows.
    """
    paid = len(costs)
    if not 1 <= paid <= rows:
        raise ValueError(f"{paid} costs cannot stand for {rows} rows")
    known, each, rest = math.fsum(costs), fmean(costs), rows - paid
    total = known + each * rest
    if rest == 0:
        return Forecast(paid, rows, each, total, total, total)
    if paid < 2:
        return Forecast(paid, rows, each, total, None, None)
    half = student_t_quantile(_UPPER, paid - 1) * stdev(costs) * math.sqrt(rest * rest / paid + rest)
    return Forecast(paid, rows, each, total, max(known, total - half), total + half)
