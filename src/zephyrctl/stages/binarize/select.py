"""Which completions become chosen and rejected. Pure: a feedback row and a policy in, a pair or a reason out.

The highest score is chosen; the rejected one is drawn among lower ones (the ZEPHYR paper) or is the worst.
Draws compare hashes of (seed, prompt, role, completion), so a row's outcome depends on that row's content and
the seed alone: not on the order of rows or completions, on other rows, or on how many processes work.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from zephyrctl.records import Completion, FeedbackRow, Message, PreferenceRow, row_seed

Reason = Literal["single_completion", "unscored", "same_text", "all_tied", "within_margin"]

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Policy:
    """How to pair. `score`: overall, mean or aspect:NAME. `margin`: None = `ties` drop or keep, else the
    least distance."""

    score: str = "overall"
    rejected: Literal["random", "worst"] = "random"
    ties: Literal["drop", "keep", "margin"] = "drop"
    margin: float | None = None
    seed: int = 42


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one prompt: a pair with its chosen completion, or the reason why there is none.

    `unscored` counts completions that took no part for want of a score; `missing` the ratings absent from the
    means, by why; `shared_best`: whether several completions had the highest score.
    """

    pair: PreferenceRow | None = None
    chosen: Completion | None = None
    rejected: Completion | None = None
    reason: Reason | None = None
    detail: str = ""
    unscored: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    shared_best: bool = False


def parse_ties(text: str) -> tuple[Literal["drop", "keep", "margin"], float | None]:
    """`drop`, `keep` or `margin=X` as (rule, X). Raises ValueError for anything else; X is a finite number
    above 0."""
    if text == "drop":
        return "drop", None
    if text == "keep":
        return "keep", None
    name, equals, number = text.partition("=")
    try:
        margin = float(number) if name == "margin" and equals else math.nan
    except ValueError:
        margin = math.nan
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"expected drop, keep or margin=X with X above 0, got '{text}'")
    return "margin", margin


def score_of(completion: Completion, score: str) -> float | None:
    """A completion's score, or None where it has none.

    `overall`: the critique's. `mean`: of the aspects that have a value (N/A and unparsed ones do not count).
    `aspect:NAME`: of that aspect alone.
    """
    if score == "overall":
        return _finite(completion.overall)
    if score == "mean":
        values = [v for r in completion.ratings if (v := _finite(r.value)) is not None]
        return math.fsum(values) / len(values) if values else None
    name = score.removeprefix("aspect:")
    found = [r.value for r in completion.ratings if r.aspect == name]
    return _finite(found[0]) if len(found) == 1 else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def missing_ratings(completions: Sequence[Completion], score: str) -> Counter[str]:
    """How many ratings `score` looked for and did not find, by why: `not applicable` or `unparsed`."""
    missing: Counter[str] = Counter()
    if score == "overall":
        missing["unparsed"] = sum(_finite(c.overall) is None for c in completions)
    else:
        name = None if score == "mean" else score.removeprefix("aspect:")
        for completion in completions:
            for rating in completion.ratings:
                if rating.value is None and name in (None, rating.aspect):
                    missing["not applicable" if rating.reason == "n/a" else "unparsed"] += 1
    return +missing


def select(row: FeedbackRow, policy: Policy) -> Outcome:
    """The pair that `policy` makes of a prompt's completions, or the reason why it makes none.

    A shared best is settled by the prompt's own seed, among those that have somebody to be preferred to.
    `drop` pairs only with strictly lower scores, `margin` with scores lower by at least it, `keep` with any;
    never with an equal text.
    """
    scores = {c.completion_id: s for c in row.completions if (s := score_of(c, policy.score)) is not None}
    unscored = len(row.completions) - len(scores)
    missing = missing_ratings(row.completions, policy.score)
    if len(row.completions) < 2:
        return Outcome(
            reason="single_completion",
            detail="fewer than two completions",
            missing=missing,
            unscored=unscored,
        )
    scored = [c for c in row.completions if c.completion_id in scores]
    if len(scored) < 2:
        detail = f"{len(scored)} of {len(row.completions)} completions have a score"
        return Outcome(reason="unscored", detail=detail, missing=missing, unscored=unscored)
    top = max(scores.values())
    best = [c for c in scored if scores[c.completion_id] == top]
    options = {c.completion_id: _below(c, scored, scores, policy) for c in best}
    able = [c for c in best if options[c.completion_id]]
    if not able:
        reason, detail = _why_none(best, scored, scores, policy)
        return Outcome(
            reason=reason, detail=detail, missing=missing, unscored=unscored, shared_best=len(best) > 1
        )
    chosen = _draw(able, row, "chosen", policy.seed)
    below = options[chosen.completion_id]
    if policy.rejected == "worst":
        lowest = min(scores[c.completion_id] for c in below)
        below = [c for c in below if scores[c.completion_id] == lowest]
    rejected = _draw(below, row, "rejected", policy.seed)
    pair = _pair(row, chosen, rejected, top, scores[rejected.completion_id])
    return Outcome(pair, chosen, rejected, unscored=unscored, missing=missing, shared_best=len(best) > 1)


def _below(
    chosen: Completion, scored: Sequence[Completion], scores: dict[str, float], policy: Policy
) -> list[Completion]:
    """The completions that `chosen` may be preferred to."""
    least = _least(policy)
    gap = {c.completion_id: scores[chosen.completion_id] - scores[c.completion_id] for c in scored}
    return [
        c
        for c in scored
        if c.completion_id != chosen.completion_id
        and gap[c.completion_id] >= least
        and not same_text(c, chosen)
    ]


def _least(policy: Policy) -> float:
    """The least distance of scores in a pair. Means are sums of fractions: distances below 1e-9 are
    equality."""
    if policy.ties == "keep":
        return 0.0
    return _ROUNDING if policy.margin is None else policy.margin - _ROUNDING


def same_text(one: Completion, other: Completion) -> bool:
    """Whether two completions say the same, outer white space aside."""
    return one.text.strip() == other.text.strip()


def _why_none(
    best: Sequence[Completion], scored: Sequence[Completion], scores: dict[str, float], policy: Policy
) -> tuple[Reason, str]:
    top = scores[best[0].completion_id]
    low = min(scores.values())
    if top - low < _ROUNDING and policy.ties != "keep":
        return "all_tied", f"all {len(scored)} scored completions have {top:g}"
    if top - low < _least(policy):
        return "within_margin", f"scores {low:g} to {top:g} lie within {policy.margin:g}"
    return "same_text", "every completion that could be rejected says the same as the best"


def _draw(candidates: Sequence[Completion], row: FeedbackRow, role: str, seed: int) -> Completion:
    """One candidate, uniformly, by hash: adding or reordering other candidates does not disturb the draw."""
    return min(
        candidates, key=lambda c: (row_seed(seed, row.prompt_id, role, c.completion_id), c.completion_id)
    )


def _pair(
    row: FeedbackRow, chosen: Completion, rejected: Completion, high: float, low: float
) -> PreferenceRow:
    return PreferenceRow(
        prompt_id=row.prompt_id,
        prompt=row.prompt,
        chosen=[Message(role="assistant", content=chosen.text)],
        rejected=[Message(role="assistant", content=rejected.text)],
        score_chosen=high,
        score_rejected=low,
        chosen_model=chosen.model,
        rejected_model=rejected.model,
        judge=row.judge,
        tie=high - low < _ROUNDING,
        source=row.source,
    )
