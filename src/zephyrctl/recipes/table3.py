"""The paper's Table 3 from stored verdicts, and plain sentences about what it shows. Pure.

Rows as in Table 3 of the ZEPHYR report (arXiv 2310.16944), the base model above them; where models were
trained with several seeds, a row is all of them together and its interval covers new prompts and new
training runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zephyrctl.benchmarks.sandbox import LABEL
from zephyrctl.benchmarks.scores import select, units
from zephyrctl.benchmarks.statistics import Estimate, Unit, mean_interval, paired_difference
from zephyrctl.events import Table
from zephyrctl.records import Verdict

BASE, DPO_ONLY, DSFT_1, DSFT_2, DPO_ON_SFT = "base", "dDPO - dSFT", "dSFT-1", "dSFT-2", "dDPO + dSFT"
SYSTEMS = (BASE, DPO_ONLY, DSFT_1, DSFT_2, DPO_ON_SFT)

Runs = Sequence[Sequence[Verdict]]
"""The verdicts of one system: one list for each training seed (a single list for the base model)."""


@dataclass(frozen=True)
class Column:
    """One measure of the table: a suite under one decoding, with the scale of its marks."""

    title: str
    plain: str
    suite: str
    decoding: str
    scale: tuple[float, float] = (0.0, 1.0)


COLUMNS = (
    Column("exact, greedy", "exact answers (greedy)", "exact", "greedy"),
    Column("exact, sampled", "exact answers (sampled)", "exact", "sampled"),
    Column("judged 1-10, sampled", "judged score", "judged", "sampled", (1.0, 10.0)),
    Column("win rate, sampled", "win rate against the base", "win_rate", "sampled"),
)
JUDGED, EXACT = COLUMNS[2], COLUMNS[1]

COMPARISONS = (
    (DSFT_1, BASE),
    (DPO_ON_SFT, DSFT_1),
    (DSFT_2, DSFT_1),
    (DPO_ON_SFT, DSFT_2),
    (DPO_ONLY, DSFT_1),
)
"""What Table 3 is read for: does imitation help, do preferences on top, would more imitation do as well?"""


@dataclass(frozen=True)
class Comparison:
    """One system against another: `estimate` is the paired difference, None without common rows."""

    one: str
    other: str
    column: Column
    estimate: Estimate | None


def system_units(runs: Runs, column: Column) -> list[Unit]:
    """The graded units of a system under one measure, each run under its own seed label."""
    return [
        unit
        for number, rows in enumerate(runs, start=1)
        for unit in units(select(rows, column.suite, column.decoding), seed=str(number))
    ]


def cells(systems: Mapping[str, Runs]) -> dict[str, dict[str, Estimate | None]]:
    """For every system, in the table's order, its estimate in every column."""
    return {
        name: {c.title: mean_interval(system_units(systems[name], c), scale=c.scale) for c in COLUMNS}
        for name in SYSTEMS
        if name in systems
    }


def compare(systems: Mapping[str, Runs], columns: Sequence[Column] = (JUDGED, EXACT)) -> list[Comparison]:
    """The `COMPARISONS` between systems that are there, on every measure, paired by prompt and seed."""
    return [
        Comparison(
            one, other, c, paired_difference(system_units(systems[one], c), system_units(systems[other], c))
        )
        for one, other in COMPARISONS
        if one in systems and other in systems
        for c in columns
    ]


def table(found: Mapping[str, Mapping[str, Estimate | None]], judge: str) -> Table:
    """The table for people; `judge` is the label of the model that judged."""
    rows = tuple((name, *(_cell(row[c.title]) for c in COLUMNS)) for name, row in found.items())
    title = f"Table 3 in the sandbox with 95 % intervals, judged by {judge}; {LABEL}"
    return Table(title, ("", *(c.title for c in COLUMNS)), rows)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def sentence(found: Comparison) -> str:
    """One comparison in plain words, with its paired interval and whether it is resolved."""
    names, estimate = f"{found.one} and {found.other}", found.estimate
    if estimate is None:
        return f"{names} have no prompt in common on {found.column.plain}."
    basis = f"paired over {estimate.clusters} prompts"
    if estimate.seeds > 1:
        basis += f" x {estimate.seeds} training seeds"
    if estimate.low is None or estimate.high is None:
        return f"{names} differ on {found.column.plain} by {estimate.value:+.2f}, {basis}: too few to tell."
    if not estimate.resolved:
        spread = f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
        return f"{names} differ on {found.column.plain} by {spread}, {basis}: not resolved."
    low, high = sorted((abs(estimate.low), abs(estimate.high)))
    verb = "beats" if estimate.value > 0 else "is behind"
    spread = f"{abs(estimate.value):.2f} [{low:.2f}, {high:.2f}]"
    return f"{found.one} {verb} {found.other} on {found.column.plain} by {spread}, {basis}: resolved."
