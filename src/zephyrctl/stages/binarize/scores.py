"""Which number ranks a completion (pure).

Second opinions take no part: they are kept in the feedback to be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from zephyrctl.artifacts.ultrafeedback import OVERALL, TEN_FOR_ONE, TEN_OR_ONE
from zephyrctl.stages.binarize.candidates import Candidate

_WHY = {"n/a": "not applicable", "missing": "absent", TEN_OR_ONE: TEN_OR_ONE}


def parse_score(text: str) -> str:
    """`overall`, `mean`, `weighted` or `aspect:NAME`. Raises ValueError for anything else."""
    if text in ("overall", "mean", "weighted") or (text.startswith("aspect:") and len(text) > len("aspect:")):
        return text
    raise ValueError("expected overall, mean, weighted or aspect:NAME")


def score_of(candidate: Candidate, score: str, weights: Mapping[str, float]) -> float | None:
    """A completion's score, or None where it has none.

    `overall`: the critique's. `mean`: of the aspects that have a value (N/A and unparsed ones do not count).
    `weighted`: the sum of weight times value over the aspects in `weights` that have a value, divided by the sum of
    their weights: what is missing is left out and never counts as a number. `aspect:NAME`: of that aspect alone.
    """
    if score == OVERALL:
        return _finite(candidate.overall)
    if score == "mean":
        values = [v for _, value, _ in candidate.ratings if (v := _finite(value)) is not None]
        return math.fsum(values) / len(values) if values else None
    if score == "weighted":
        found = [
            (weights[aspect], v)
            for aspect, value, _ in candidate.ratings
            if aspect in weights and (v := _finite(value)) is not None
        ]
        return math.fsum(w * v for w, v in found) / math.fsum(w for w, _ in found) if found else None
    name = score.removeprefix("aspect:")
    marks = [value for aspect, value, _ in candidate.ratings if aspect == name]
    return _finite(marks[0]) if len(marks) == 1 else None


def ratings_wanted(
    candidates: Iterable[Candidate], score: str, weights: Mapping[str, float]
) -> tuple[int, dict[str, int]]:
    """How many ratings `score` looked for and found, and how many it did not find, by why.

    Why: `not applicable`, `unparsed`, `absent` (nobody asked, or the reply was lost), or `10 or 1`, a score of
    UltraFeedback that cannot be told apart.
    """
    found = 0
    missing: dict[str, int] = {}
    for candidate in candidates:
        for value, reason in _looked_for(candidate, score, weights):
            if _finite(value) is not None:
                found += 1
            else:
                why = _WHY.get(reason or "", "unparsed")
                missing[why] = missing.get(why, 0) + 1
    return found, missing


def _looked_for(
    candidate: Candidate, score: str, weights: Mapping[str, float]
) -> list[tuple[float | None, str | None]]:
    """The ratings that a score needs, each with why it has no value; those that nobody made too."""
    if score == OVERALL:
        return [(candidate.overall, candidate.note)]
    if score == "mean":
        return [(value, reason) for _, value, reason in candidate.ratings]
    wanted = set(weights) if score == "weighted" else {score.removeprefix("aspect:")}
    there = [(value, reason) for aspect, value, reason in candidate.ratings if aspect in wanted]
    absent = wanted - {aspect for aspect, _, _ in candidate.ratings}
    return [*there, *[(None, "missing")] * len(absent)]


def mended(candidate: Candidate) -> bool:
    """Whether the completion's overall score was stored as 10 and taken for the 1 that it was."""
    return candidate.note == TEN_FOR_ONE


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
