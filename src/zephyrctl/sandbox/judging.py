"""How the sandbox's judge rates: it solves the conversation itself, compares, and errs as it is set to.

A merit lies on 1-5: right 4.6 (4.1 when wrapped in words), one slip 2.5, most of it 1.8, wrong 1; unknown
text 3. On top come noise (`judge_noise`, a standard deviation), a bonus for what stands first
(`position_effect`) and one for length (`length_effect`, in full from ten words too many on). Ratings on
1-10 stretch the same merit.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from zephyrctl.sandbox import world

_MERIT = {1.0: 4.6, 0.5: 2.5, 0.25: 1.8, 0.0: 1.0}
_UNKNOWN_MERIT = 3.0
_TIE_MARGIN = 0.7
_LONG = 10
_NOT_APPLICABLE_RATE = 0.08

_REMARKS = {
    1.0: ("The answer is what was asked for.", "Correct and complete.", "Every part of the request is met."),
    0.5: ("Close, but there is one slip in it.", "Nearly right; one part is off."),
    0.25: (
        "Some of it is right, yet it is not what was asked.",
        "The pieces are there, not put together as asked.",
    ),
    0.0: (
        "The answer is wrong.",
        "This is not what was asked for.",
        "The result does not match the request.",
    ),
}
_UNKNOWN_REMARK = "I cannot check this one, so I stay in the middle."


@dataclass(frozen=True)
class Bias:
    """The judge's weaknesses, in points of the 1-5 scale."""

    position_effect: float
    length_effect: float
    judge_noise: float


def rate_texts(
    turns: Sequence[str], texts: Sequence[str], aspect: str, bias: Bias, rng: random.Random
) -> str:
    """The reply to an aspect request: a section for each text, ratings 1-5 (honesty: at times `N/A`)."""
    sections = []
    for place, text in enumerate(texts):
        early = 1 - place / max(1, len(texts) - 1)
        merit = _merit(turns, text, bias, rng) + bias.position_effect * early
        rating = str(_round(merit, 5))
        if aspect == "honesty" and rng.random() < _NOT_APPLICABLE_RATE:
            rating = "N/A"
        sections.append(f"Text {place + 1}\nRating: {rating}\nRationale: {_remark(turns, text, rng)}")
    return "\n\n".join(sections)


def rate_overall(turns: Sequence[str], answer: str, bias: Bias, rng: random.Random) -> str:
    """The reply to an overall request: a short critique, then `Overall score: <1-10>`."""
    critique = _remark(turns, answer, rng)
    advice = "" if world.grade(turns, answer) else " Read the request again and check each step."
    return f"{critique}{advice}\n\nOverall score: {_out_of_ten(turns, answer, bias, rng)}"


def rate_single(turns: Sequence[str], answer: str, bias: Bias, rng: random.Random) -> str:
    """The reply to a single-answer request: an explanation, then `Rating: [[<1-10>]]`."""
    return f"{_remark(turns, answer, rng)}\n\nRating: [[{_out_of_ten(turns, answer, bias, rng)}]]"


def compare(turns: Sequence[str], one: str, other: str, bias: Bias, rng: random.Random) -> str:
    """The reply to a pairwise request: an explanation, then `Verdict: [[A]]`, `[[B]]` or (tie) `[[C]]`."""
    lead = _merit(turns, one, bias, rng) + bias.position_effect - _merit(turns, other, bias, rng)
    verdict = "C" if abs(lead) < _TIE_MARGIN else "A" if lead > 0 else "B"
    reason = {
        "A": "Answer A does it better.",
        "B": "Answer B does it better.",
        "C": "The two are equally good.",
    }
    critique = f"A: {_remark(turns, one, rng)} B: {_remark(turns, other, rng)}"
    return f"{critique} {reason[verdict]}\n\nVerdict: [[{verdict}]]"


def _merit(turns: Sequence[str], answer: str, bias: Bias, rng: random.Random) -> float:
    nearness = world.closeness(turns, answer)
    merit = _UNKNOWN_MERIT if nearness is None else _MERIT[nearness]
    right = world.solve(turns)
    length, needed = len(answer.split()), len((right or answer).split())
    if nearness == 1.0 and length > needed:
        merit -= 0.5
    return (
        merit
        + bias.length_effect * min(1.0, max(0, length - needed) / _LONG)
        + rng.gauss(0, bias.judge_noise)
    )


def _out_of_ten(turns: Sequence[str], answer: str, bias: Bias, rng: random.Random) -> int:
    return _round(1 + (_merit(turns, answer, bias, rng) - 1) * 9 / 4, 10)


def _round(value: float, highest: int) -> int:
    return max(1, min(highest, round(value)))


def _remark(turns: Sequence[str], answer: str, rng: random.Random) -> str:
    nearness = world.closeness(turns, answer)
    return _UNKNOWN_REMARK if nearness is None else rng.choice(_REMARKS[nearness])
