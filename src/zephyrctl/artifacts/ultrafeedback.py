"""The raw rows of UltraFeedback (the layout of its published files) as feedback rows (pure).

Three things in these files need a rule:

A score of 10 may be a 1. The script that read the scores multiplied those up to 1 by ten, so an overall score of
1 was published as 10. Files made before December 2023 hold them, later ones were mended by asking again. Here,
without a model: an overall score of 10 is compared with the mean of the aspect ratings that have a value. Up to 2
it was a 1; above 4 it is a 10; between the two nobody can tell, so the completion is unscored. What was done
stands among the ratings as one without a value, aspect `overall`, reason `10 for 1` or `10 or 1`.

Ratings may be absent (an empty annotation) or `N/A`: both are missing, with the reason, and never a number.

Completions may be absent or empty: they are kept with an empty text, so that whoever reads the rows can count them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from zephyrctl.records import Completion, FeedbackRow, Message, Rating, completion_id, prompt_id

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
JUDGE = "gpt-4"
"""Who rated the published files, as they say themselves."""

OVERALL = "overall"
"""The aspect of a rating without a value that tells what was done with the overall score."""
TEN_FOR_ONE = "10 for 1"
TEN_OR_ONE = "10 or 1"

_WAS_ONE_UP_TO = 2.0
_IS_TEN_ABOVE = 4.0
_KIND = re.compile(r"[0-9]{1,2}")
_NUMBER = re.compile(r"[0-9]{1,2}(?:\.[0-9]{1,6})?")


def ultrafeedback_row(row: Mapping[str, Any]) -> FeedbackRow:
    """The feedback row that a raw row (`source`, `instruction`, `completions`, …) stands for.

    Raises ValueError saying what makes the row unusable: no instruction, no list of completions, a completion without
    a model.
    """
    instruction, found = row.get("instruction"), row.get("completions")
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError("`instruction` is empty or not text")
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise ValueError("`completions` is not a list")
    draws: Counter[str] = Counter()
    completions = []
    for place, item in enumerate(found):
        if not isinstance(item, Mapping):
            raise ValueError(f"`completions.{place}` is not an object")
        model = item.get("model")
        if not isinstance(model, str) or not model:
            raise ValueError(f"`completions.{place}` does not say which model wrote it")
        completions.append(_completion(item, model, draws[model]))
        draws[model] += 1
    prompt = [Message(role="user", content=instruction)]
    source = row.get("source")
    return FeedbackRow(
        prompt_id=prompt_id(prompt),
        prompt=prompt,
        completions=completions,
        judge=JUDGE,
        source=source if isinstance(source, str) else "",
    )


def mend_overall(overall: float | None, fine_grained: float | None) -> tuple[float | None, str | None]:
    """An overall score (1-10) as it is to be believed, and what was done: None, `10 for 1` or `10 or 1`.

    `fine_grained` is the mean of the aspect ratings (1-5), None where there is none.
    """
    if overall != 10:
        return overall, None
    if fine_grained is None or _WAS_ONE_UP_TO < fine_grained <= _IS_TEN_ABOVE:
        return None, TEN_OR_ONE
    return (1.0, TEN_FOR_ONE) if fine_grained <= _WAS_ONE_UP_TO else (overall, None)


def _completion(item: Mapping[str, Any], model: str, draw: int) -> Completion:
    response, critique, principle = item.get("response"), item.get("critique"), item.get("principle")
    text = response if isinstance(response, str) else ""
    annotations = item.get("annotations")
    ratings = [
        _rating(aspect, annotations.get(aspect) if isinstance(annotations, Mapping) else None)
        for aspect in ASPECTS
    ]
    overall, done = mend_overall(_between(item.get("overall_score"), 1, 10), _fine_grained(item, ratings))
    if done is not None:
        ratings.append(Rating(aspect=OVERALL, value=None, reason=done))
    return Completion(
        completion_id=completion_id(model, draw, text),
        model=model,
        text=text,
        finish_reason="stop" if text.strip() else "empty",
        ratings=ratings,
        overall=overall,
        critique=critique if isinstance(critique, str) and critique.strip() else None,
        draw=draw,
        principle=principle if isinstance(principle, str) and principle else None,
    )


def _fine_grained(item: Mapping[str, Any], ratings: Sequence[Rating]) -> float | None:
    """The mean of the ratings that have a value; the stored mean only where there is none."""
    values = [r.value for r in ratings if r.value is not None]
    return math.fsum(values) / len(values) if values else _between(item.get("fine-grained_score"), 1, 5)


def _rating(aspect: str, found: Any) -> Rating:
    """One aspect's rating; some files hold it as a list of one, empty where the judge's reply could not be read."""
    if isinstance(found, list):
        found = found[0] if len(found) == 1 else None
    if not isinstance(found, Mapping):
        return Rating(aspect=aspect, value=None, reason="missing")
    said = found.get("Rating")
    value, reason = _between(said, 1, 5), None
    if value is None:
        text = str(said).strip() if said is not None else ""
        not_applicable = text.upper() in ("N/A", "NA")
        reason = "n/a" if not_applicable else f"not 1-5: {text[:40]!r}" if text else "missing"
    rationale = found.get("Rationale For Rating") or found.get("Rationale")
    return Rating(
        aspect=aspect,
        value=value,
        rationale=rationale if isinstance(rationale, str) and rationale.strip() else None,
        reason=reason,
        types=_types(found.get("Type")),
    )


def _between(value: Any, low: float, high: float) -> float | None:
    """A number from `low` to `high`, also as text; anything else is none."""
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value := value.strip()) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if low <= value <= high else None


def _types(value: Any) -> list[int]:
    """The numbers of the kinds named: `["1", "3"]` or `"1, 3"`; `None` names none."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [int(text) for part in parts if _KIND.fullmatch(text := str(part).strip())]
