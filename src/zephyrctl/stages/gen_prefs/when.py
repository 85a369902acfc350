"""Which rows a second judge is asked about: those where the first one hardly decides, or contradicts itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zephyrctl.errors import UsageError
from zephyrctl.judges.agreement import SAME, best_of
from zephyrctl.judges.sample import mean_of_aspects
from zephyrctl.records import Completion

_FORMS = "margin<X, conflict, margin<X or conflict, always"


@dataclass(frozen=True)
class When:
    """A condition on rated completions. `margin` None = closeness is no reason."""

    margin: float | None = None
    conflict: bool = False
    always: bool = False

    def reason(self, completions: Sequence[Completion]) -> str | None:
        """Why a second judge is asked about these: `margin`, `conflict`, `always`; None = it is not.

        margin: the two best scores (overall, where there is any; else the mean of the aspects) are less than X apart.
        conflict: no text is best by both. Where fewer than two texts have a score, neither can be told.
        """
        if self.always:
            return "always"
        means = [mean_of_aspects(c) for c in completions]
        overall = [c.overall for c in completions]
        if self.margin is not None and _margin(overall, means) < self.margin - SAME:
            return "margin"
        one, other = best_of(means), best_of(overall)
        return "conflict" if self.conflict and one and other and not one & other else None


def parse_when(text: str) -> When:
    """`margin<X`, `conflict`, both joined by `or`, or `always`. Raises UsageError for anything else; X is a finite
    number above 0."""
    parts = [part.strip() for part in text.split(" or ")]
    if parts == ["always"]:
        return When(always=True)
    margin, conflict = None, False
    for part in parts:
        if part == "conflict" and not conflict:
            conflict = True
        elif part.startswith("margin") and margin is None:
            margin = _number(part.removeprefix("margin"), text)
        else:
            raise _unreadable(text)
    return When(margin, conflict)


def _number(text: str, whole: str) -> float:
    sign, number = text.strip()[:1], text.strip()[1:]
    try:
        value = float(number) if sign == "<" else math.nan
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise _unreadable(whole)
    return value


def _unreadable(text: str) -> UsageError:
    return UsageError(
        f"when: '{text}' is no condition for a second judge", hint=f"one of: {_FORMS} (X above 0)"
    )


def _margin(overall: Sequence[float | None], means: Sequence[float | None]) -> float:
    scores = overall if any(score is not None for score in overall) else means
    known = sorted((score for score in scores if score is not None), reverse=True)
    return known[0] - known[1] if len(known) > 1 else math.inf
