"""How the sandbox's judge rates: it solves the conversation itself, compares, and errs as it is set to.

A merit lies on 1-5: right 4.6, one slip 2.5, most of it 1.8, wrong 1; unknown text 3. Nothing else enters it but the
settings of `Bias`: noise, a bonus for what stands first, one for length, and a taste for brevity. With all of these
at 0 two answers of equal correctness have equal merit, whatever their place and their length; answers of unequal
correctness may well differ in length (a slip loses or doubles a word), so whoever looks for an effect of length has
to compare answers that are equally right, or lengths within one author, whose wordiness does not depend on whether
he is right. Ratings on 1-10 stretch the same merit.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from zephyrctl.sandbox import world
from zephyrctl.sandbox.requests import Request

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


_SLIPS = {0.5: [1], 0.25: [1, 2], 0.0: [1]}
"""Kinds of error that are named, by nearness."""
_MERITS = {1.0: [1, 2, 3], 0.5: [1, 3], 0.25: [3]}
"""Kinds of merit that are named, by nearness; 3 (to the point) only without words too many."""
_TOO_MANY = 3


@dataclass(frozen=True)
class Bias:
    """The judge's weaknesses, in points of the 1-5 scale.

    `position_effect`: bonus of the text shown first, falling evenly to 0 for the last. `length_effect`: bonus of
    words beyond the right answer's, in full from ten of them on. `brevity`: what a right answer loses when it is
    wrapped in words. `judge_noise`: standard deviation of what is added by chance.
    """

    position_effect: float
    length_effect: float
    judge_noise: float
    brevity: float = 0.0


def rate_texts(request: Request, bias: Bias, rng: random.Random) -> str:
    """The reply to an aspect request: a section for each text, ratings 1-5 (honesty: at times `N/A`)."""
    rows = []
    for place, text in enumerate(request.answers):
        early = 1 - place / max(1, len(request.answers) - 1)
        merit = _merit(request.turns, text, bias, rng) + bias.position_effect * early
        rating: int | str = _round(merit, 5)
        if request.aspect == "honesty" and rng.random() < _NOT_APPLICABLE_RATE:
            rating = "N/A"
        remark = _remark(request.turns, text, rng)
        rows.append((_types(request, text), rating, remark))
    if request.structured:
        return json.dumps({f"text_{n}": _fields(request, *row) for n, row in enumerate(rows, 1)})
    return "\n\n".join(f"Text {n}\n{_lines(request, *row)}" for n, row in enumerate(rows, 1))


def _fields(request: Request, types: list[int], rating: int | str, remark: str) -> dict[str, object]:
    kinds: dict[str, object] = {"types": types} if request.typed else {}
    said = {} if request.repair else {"rationale": remark}
    return {**kinds, "rating": str(rating) if request.aspect == "honesty" else rating, **said}


def _lines(request: Request, types: list[int], rating: int | str, remark: str) -> str:
    kinds = f"Types: {', '.join(map(str, types)) or 'none'}\n" if request.typed else ""
    said = "" if request.repair else f"\nRationale: {remark}"
    return f"{kinds}Rating: {rating}{said}"


def _types(request: Request, text: str) -> list[int]:
    """The numbers of the kinds of error (truthfulness) or of merit (any other aspect) that fit."""
    nearness = world.closeness(request.turns, text)
    if nearness is None:
        return []
    if request.aspect == "truthfulness":
        return _SLIPS.get(nearness, [])
    wordy = _excess(request.turns, text) >= _TOO_MANY
    return [kind for kind in _MERITS.get(nearness, []) if not (wordy and kind == 3)]


def rate_overall(request: Request, bias: Bias, rng: random.Random) -> str:
    """The reply to an overall request: a short critique, then `Overall score: <1-10>`."""
    turns, answer = request.turns, request.answers[0]
    critique = _remark(turns, answer, rng)
    advice = "" if world.grade(turns, answer) else " Read the request again and check each step."
    score = _out_of_ten(turns, answer, bias, rng)
    if request.structured:
        said = {} if request.repair else {"critique": f"{critique}{advice}"}
        return json.dumps({**said, "score": score})
    said_before = "" if request.repair else f"{critique}{advice}\n\n"
    return f"{said_before}Overall score: {score}"


def garbled(text: str, rng: random.Random) -> str:
    """A reply that lost its form: another name for the texts, halves of points, no ratings at all, or cut JSON."""
    if text.startswith("{"):
        return text[: len(text) // 2]
    renamed = text.replace("Text ", "Answer ").replace("Overall score", "My score")
    halves = re.sub(r"^(Rating|Overall score): ([0-9]+)$", r"\1: \2.5", text, flags=re.MULTILINE)
    return rng.choice((renamed, halves, "Each of them has something to be said for it."))


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
    excess = _excess(turns, answer)
    if nearness == 1.0 and excess:
        merit -= bias.brevity
    return merit + bias.length_effect * min(1.0, excess / _LONG) + rng.gauss(0, bias.judge_noise)


def _excess(turns: Sequence[str], answer: str) -> int:
    """Words of an answer beyond those of the right one; none where that is not known."""
    right = world.solve(turns)
    return max(0, len(answer.split()) - len((right or answer).split()))


def _out_of_ten(turns: Sequence[str], answer: str, bias: Bias, rng: random.Random) -> int:
    return _round(1 + (_merit(turns, answer, bias, rng) - 1) * 9 / 4, 10)


def _round(value: float, highest: int) -> int:
    return max(1, min(highest, round(value)))


def _remark(turns: Sequence[str], answer: str, rng: random.Random) -> str:
    nearness = world.closeness(turns, answer)
    return _UNKNOWN_REMARK if nearness is None else rng.choice(_REMARKS[nearness])
