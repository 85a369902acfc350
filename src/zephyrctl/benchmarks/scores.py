"""From stored verdicts to scores: which rows make a unit, what failed, how sure the mean is. Pure.

One place decides this for every suite: rows of one (prompt, turn) are one unit; where both orders of a
comparison were shown, the unit is their mean and needs both, for one order alone carries the judge's
position bias.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from zephyrctl.benchmarks.base import NO_JUDGE
from zephyrctl.benchmarks.biases import Game
from zephyrctl.benchmarks.statistics import Estimate, Unit, fill_bounds, mean_interval, paired_difference
from zephyrctl.records import Verdict

ALL = "all turns"


@dataclass(frozen=True)
class Score:
    """A suite's mean under one decoding, with everything needed to trust it.

    `estimate` is the mean over the graded units with its interval; `failed` units did not enter it, and
    `worst` and `best` are the means if those had all got the lowest, or the highest, mark of the scale.
    `difference` is paired with the baseline on the same prompts.
    """

    suite: str
    decoding: str
    part: str
    judge: str
    estimate: Estimate | None
    failed: int
    worst: float
    best: float
    difference: Estimate | None = None

    @property
    def name(self) -> str:
        """`judged[sandbox:judge] sampled`: a score's name carries its judge."""
        judge = "" if self.judge == NO_JUDGE else f"[{self.judge}]"
        part = "" if self.part == ALL else f", {self.part}"
        return f"{self.suite}{judge} {self.decoding}{part}"

    def against(self, difference: Estimate | None) -> "Score":
        """The score with its paired difference to the baseline."""
        return replace(self, difference=difference)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, `name` first; estimates say themselves whether they are resolved (exclude zero)."""
        body = {"name": self.name, **asdict(self)}
        if self.difference is not None:
            body["difference"]["resolved"] = self.difference.resolved
        return body


def select(rows: Iterable[Verdict], suite: str, decoding: str, part: str = ALL) -> list[Verdict]:
    """The verdicts of one suite and decoding; `part`: `all turns`, `turn 1`, `turn 2` ... or `last turn`."""
    found = [row for row in rows if row.suite == suite and row.decoding == decoding]
    if part == ALL:
        return found
    last: dict[str, int] = defaultdict(int)
    for row in found:
        last[row.prompt_id] = max(last[row.prompt_id], row.turn)
    if part == "last turn":
        return [row for row in found if row.turn == last[row.prompt_id]]
    return [row for row in found if f"turn {row.turn}" == part]


def graded(rows: Iterable[Verdict]) -> dict[tuple[str, int], float | None]:
    """The value of each (prompt_id, turn), None where it failed. Raises ValueError for a row given twice."""
    cells: dict[tuple[str, int], dict[str, float | None]] = defaultdict(dict)
    for row in rows:
        cell = cells[row.prompt_id, row.turn]
        if row.order in cell:
            raise ValueError(f"two {row.suite} verdicts for prompt {row.prompt_id[:12]}, turn {row.turn}")
        cell[row.order] = row.score
    return {key: _cell_value(cell) for key, cell in cells.items()}


def _cell_value(cell: dict[str, float | None]) -> float | None:
    if "AB" in cell or "BA" in cell:
        both = (cell.get("AB"), cell.get("BA"))
        return None if both[0] is None or both[1] is None else (both[0] + both[1]) / 2
    return cell[""]


def units(rows: Iterable[Verdict], seed: str = "") -> list[Unit]:
    """The graded units, for `mean_interval` and `paired_difference`; `seed` names the training seed."""
    return [
        Unit(prompt, f"turn {turn}", value, seed)
        for (prompt, turn), value in graded(rows).items()
        if value is not None
    ]


def score(rows: Sequence[Verdict], scale: tuple[float, float], part: str = ALL) -> Score | None:
    """The score of verdicts of one suite and decoding (see `select`); None without rows.

    Raises ValueError where the rows come from several suites, decodings or judges.
    """
    if not rows:
        return None
    kinds = {(row.suite, row.decoding, row.judge) for row in rows}
    if len(kinds) > 1:
        raise ValueError(f"one score cannot mix {sorted(kinds)}")
    suite, decoding, judge = kinds.pop()
    values = list(graded(rows).values())
    bounds = fill_bounds(values, *scale) or (scale[0], scale[1])
    return Score(
        suite=suite,
        decoding=decoding,
        part=part,
        judge=judge,
        estimate=mean_interval(units(rows), scale=scale),
        failed=sum(v is None for v in values),
        worst=bounds[0],
        best=bounds[1],
    )


def difference(one: Iterable[Verdict], other: Iterable[Verdict]) -> Estimate | None:
    """`one` minus `other` over the (prompt, turn) units that both have graded, clustered by prompt."""
    return paired_difference(units(one), units(other))


def games(rows: Iterable[Verdict]) -> list[Game]:
    """The comparisons among verdicts of any decodings, both orders in one; others are passed over."""
    pairs: dict[tuple[str, str, int], dict[str, Verdict]] = defaultdict(dict)
    for row in rows:
        if row.order:
            pairs[row.decoding, row.prompt_id, row.turn][row.order] = row
    found = []
    for (decoding, prompt, turn), orders in pairs.items():
        one = orders.get("AB") or orders["BA"]
        ours, theirs = len(one.answer), len(one.reference or "")
        found.append(
            Game(
                prompt,
                f"{decoding} turn {turn}",
                orders["AB"].score if "AB" in orders else None,
                orders["BA"].score if "BA" in orders else None,
                None if ours == theirs else ours > theirs,
                asked=all(row.critique is not None for row in orders.values()),
            )
        )
    return found
