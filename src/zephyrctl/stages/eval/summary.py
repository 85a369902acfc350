"""What an evaluation says: scores with paired differences, the judge's biases, a table. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from zephyrctl.benchmarks.base import NO_JUDGE, Benchmark
from zephyrctl.benchmarks.biases import correlation, first_shown_preferred, flip_rate, longer_preferred
from zephyrctl.benchmarks.scores import ALL, Score, difference, games, score, select
from zephyrctl.benchmarks.statistics import Estimate
from zephyrctl.events import Table
from zephyrctl.records import Verdict


def scores(
    rows: Sequence[Verdict],
    baseline: Sequence[Verdict] | None,
    suites: Sequence[Benchmark],
    decodings: Sequence[str],
) -> list[Score]:
    """Every suite under every decoding, whole and by turn; paired with the baseline's verdicts on the same
    prompts.

    A comparison is paired already: its difference is to the 0.5 that a model has against itself. `baseline`
    None = the model is the baseline, so that there is nothing to differ from.
    """
    found: list[Score] = []
    for suite in suites:
        for decoding in decodings:
            turns = sorted({row.turn for row in select(rows, suite.name, decoding)})
            parts = [ALL, *(f"turn {t}" for t in turns), "last turn"] if len(turns) > 1 else [ALL]
            for part in parts:
                ours = select(rows, suite.name, decoding, part)
                made = score(ours, suite.scale, part)
                if made is not None:
                    theirs = None if baseline is None else select(baseline, suite.name, decoding, part)
                    found.append(made.against(_difference(suite, made, ours, theirs)))
    return found


def _difference(
    suite: Benchmark, made: Score, ours: Sequence[Verdict], theirs: Sequence[Verdict] | None
) -> Estimate | None:
    if theirs is None:
        return None
    if not suite.compares:
        return difference(ours, theirs)
    return None if made.estimate is None else made.estimate.shifted(-0.5)


def biases(rows: Sequence[Verdict], suites: Sequence[Benchmark]) -> dict[str, Any]:
    """What the judge prefers besides quality, over all decodings.

    first_shown_preferred: share of verdicts for the answer shown first, 0.5 = no position bias. flip_rate:
    share of verdicts that change with the order. longer_preferred: mean verdict for the longer answer.
    length_correlation: Pearson's r of an answer's length in characters with its grade;
    length_correlation_right: the same among exactly right answers, where quality does not differ.
    """
    right = {(r.decoding, r.prompt_id, r.turn) for r in rows if r.suite == "exact" and r.score == 1.0}
    found: dict[str, Any] = {}
    for suite in suites:
        mine = [row for row in rows if row.suite == suite.name]
        if suite.compares:
            pairs = games(mine)
            found[suite.name] = {
                "first_shown_preferred": _plain(first_shown_preferred(pairs)),
                "flip_rate": _plain(flip_rate(pairs)),
                "longer_preferred": _plain(longer_preferred(pairs)),
            }
        elif suite.judged:
            sure = [row for row in mine if (row.decoding, row.prompt_id, row.turn) in right]
            found[suite.name] = {
                "length_correlation": _length_correlation(mine),
                "length_correlation_right": _length_correlation(sure),
            }
    return found


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)


def _length_correlation(rows: Sequence[Verdict]) -> float | None:
    return correlation([(float(len(row.answer)), row.score) for row in rows if row.score is not None])


def counts(rows: Sequence[Verdict], cut: int) -> dict[str, Any]:
    """The manifest's counts: prompts, verdicts, failed ones by reason, answers cut at the length limit."""
    failed = Counter(f"{row.suite}: {row.reason}" for row in rows if row.score is None)
    return {
        "prompts": len({row.prompt_id for row in rows}),
        "verdicts": len(rows),
        "failed": sum(failed.values()),
        "failed_by_reason": dict(sorted(failed.items())),
        "answers_cut": cut,
    }


def headline(found: Sequence[Score]) -> dict[str, Any]:
    """The main scores by name, for listings: whole suites as sampled, and exact answers also greedy."""
    main = [s for s in found if s.part == ALL and (s.decoding == "sampled" or s.judge == NO_JUDGE)]
    return {s.name: round(s.estimate.value, 3) for s in main if s.estimate is not None}


def table(found: Sequence[Score], title: str) -> Table:
    """The whole-suite scores for people; those by turn stand in summary.json."""
    rows = tuple(
        (
            s.name,
            interval(s.estimate),
            str(s.estimate.n if s.estimate else 0),
            f"{s.failed} ({s.worst:.2f} to {s.best:.2f})" if s.failed else "0",
            signed(s.difference),
        )
        for s in found
        if s.part == ALL
    )
    columns = ("score", "value [95 %]", "graded", "failed (bounds)", "minus baseline, paired [95 %]")
    return Table(title, columns, rows)


def interval(estimate: Estimate | None) -> str:
    """`4.31 [4.02, 4.61]`; `-` where there is no mean."""
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def signed(estimate: Estimate | None) -> str:
    """`+0.31 [+0.02, +0.61] resolved`, or `not resolved` where the interval holds zero."""
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.2f}"
    word = "resolved" if estimate.resolved else "not resolved"
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}] {word}"
