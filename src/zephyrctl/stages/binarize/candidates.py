"""A prompt and its completions as the selection sees them: plain values, whatever they were read from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zephyrctl.artifacts.ultrafeedback import OVERALL
from zephyrctl.records import FeedbackRow

Rated = tuple[str, float | None, str | None]
"""One rating: aspect, value, and why there is no value."""


class Candidate(NamedTuple):
    """One completion. `overall` is the critique's score (1-10), None where there is none; `note` says what was done
    with it, or why there is none, where that is known; `ratings` are those of the aspects."""

    identity: str
    model: str
    text: str
    overall: float | None
    note: str | None
    ratings: Sequence[Rated]


class Asked(NamedTuple):
    """One prompt: `question` is its last user message, `candidates` are in stored order."""

    prompt_id: str
    source: str
    question: str
    candidates: Sequence[Candidate]


def asked_of(row: FeedbackRow) -> Asked:
    """What the selection has to know of a feedback row."""
    candidates = [
        candidate(
            c.completion_id, c.model, c.text, c.overall, [(r.aspect, r.value, r.reason) for r in c.ratings]
        )
        for c in row.completions
    ]
    return Asked(row.prompt_id, row.source, row.prompt[-1].content, candidates)


def candidate(
    identity: str, model: str, text: str, overall: float | None, ratings: Sequence[Rated]
) -> Candidate:
    """A completion, with what was noted about its overall score apart from the ratings of the aspects."""
    for place, (aspect, _, reason) in enumerate(ratings):
        if aspect == OVERALL:
            others = [*ratings[:place], *ratings[place + 1 :]]
            return Candidate(identity, model, text, overall, reason, others)
    return Candidate(identity, model, text, overall, None, ratings)
