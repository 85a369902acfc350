"""The UltraFeedback judge: four aspects rated 1-5 over all texts at once, and a critique with an overall
score 1-10 for one.

The split into aspects, the scales, the kinds of error and merit and the calls are those of UltraFeedback (arXiv
2310.01377); the wording is our own. A request has the rubric first and the material after it, so that all requests
of one aspect begin alike. Ratings are bound to texts by the label of their section (see `sections`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from zephyrctl.judges.base import NOT_APPLICABLE, Parsed, final_line, quoted, trimmed, whole_number
from zephyrctl.judges.sections import Section, json_reply, scalar, sections_of, words
from zephyrctl.judges.templates import render, source
from zephyrctl.providers.base import Schema
from zephyrctl.records import Message

ASPECTS: tuple[str, ...] = ("instruction_following", "honesty", "truthfulness", "helpfulness")

_PACKAGE = "zephyrctl.judges"
_BEST, _BEST_OVERALL = 5, 10
_NA = re.compile(r"n/?a", re.IGNORECASE)
_NUMBERS = re.compile(r"[0-9]{1,3}(?: ?, ?[0-9]{1,3})*")


@dataclass(frozen=True)
class Aspect:
    """The rubric of one aspect: the question, what each grade means, the kinds that are named by number.

    `not_applicable` says when N/A is an answer; None = never. `kinds` is what the types are kinds of.
    """

    asks: str
    scale: Mapping[int, str]
    not_applicable: str | None = None
    kinds: str | None = None
    types: Mapping[int, str] | None = None


@cache
def rubrics() -> dict[str, Aspect]:
    """The rubric of every aspect, by name."""
    import yaml

    loaded = yaml.safe_load(source(_PACKAGE, "rubrics/aspects.yaml"))
    return {name: Aspect(**{**body, "asks": body["asks"].strip()}) for name, body in loaded.items()}


def aspect_prompt(
    conversation: Sequence[Message], texts: Sequence[str], aspect: str, *, structured: bool = False
) -> str:
    """The request to rate `texts`, in the order shown, on one aspect; `structured` = as JSON (`aspect_schema`).

    Raises KeyError for an aspect without a rubric.
    """
    rubric = rubrics()[aspect]
    return render(
        _PACKAGE,
        "rubrics/aspect.md",
        aspect=aspect,
        asks=rubric.asks,
        scale=rubric.scale,
        not_applicable=rubric.not_applicable,
        kinds=rubric.kinds,
        types=rubric.types,
        number_wanted=_wanted(rubric),
        structured=structured,
        count=len(texts),
        blocks=quoted(conversation, **{f"TEXT_{i}": text for i, text in enumerate(texts, 1)}),
    )


def aspect_schema(n: int, aspect: str, *, rationale: bool = True) -> Schema:
    """The JSON form of a reply about `n` texts: an object with one key for each text, so that no list can shift."""
    rubric = rubrics()[aspect]
    parts: dict[str, Any] = {}
    if rubric.types:
        parts["types"] = {"type": "array", "items": {"type": "integer", "enum": list(rubric.types)}}
    grades = list(rubric.scale)
    parts["rating"] = (
        {"type": "string", "enum": [*map(str, grades), "N/A"]}
        if rubric.not_applicable
        else {"type": "integer", "enum": grades}
    )
    if rationale:
        parts["rationale"] = {"type": "string"}
    return Schema("ratings", _object({f"text_{i}": _object(parts) for i in range(1, n + 1)}))


def parse_aspect(reply: str, n: int, aspect: str) -> list[Parsed]:
    """One result for each of the `n` texts shown, by the label of its section. Never raises.

    Missing (value None, with a reason): a text without a section or with two, a section without exactly one rating, one
    below words in a reply that quotes, a value that is not 1-5 (or N/A, for honesty only). A label beyond `n` voids the
    whole reply: its author counted other texts than were shown. Types that cannot be read leave the rating as it is,
    and say so.
    """
    sections, why = sections_of(reply)
    strangers = sorted(number for number in sections if not 1 <= number <= n)
    if strangers:
        why = f"extra section: Text {strangers[0]} where {n} texts were shown"
    if why:
        return [Parsed(reason=why) for _ in range(n)]
    return [_read_section(sections.get(number, []), number, rubrics()[aspect]) for number in range(1, n + 1)]


def repair_aspect(n: int, aspect: str, *, structured: bool = False) -> str:
    """The turn that asks for the ratings of `n` texts alone, after a reply that could not be read."""
    rubric = rubrics()[aspect]
    kinds = '"types": [<numbers>], ' if rubric.types else ""
    if structured:
        rows = [f'"text_{i}": {{{kinds}"rating": <rating>}}' for i in range(1, n + 1)]
        form = "{" + ", ".join(rows) + "}"
    else:
        lines = "Types: <numbers, or none>\nRating: <rating>" if rubric.types else "Rating: <rating>"
        form = "\n\n".join(f"Text {i}\n{lines}" for i in range(1, n + 1))
    note = f"Each <rating> is {_wanted(rubric)}."
    return render(_PACKAGE, "rubrics/repair.md", form=form, note=note, structured=structured)


def overall_prompt(conversation: Sequence[Message], answer: str, *, structured: bool = False) -> str:
    """The request for a critique of one answer and its overall score; `structured` = as JSON (`overall_schema`)."""
    blocks = quoted(conversation, ANSWER=answer)
    return render(_PACKAGE, "rubrics/overall.md", structured=structured, blocks=blocks)


def overall_schema(*, critique: bool = True) -> Schema:
    """The JSON form of a critique with its score."""
    parts: dict[str, Any] = {"critique": {"type": "string"}} if critique else {}
    parts["score"] = {"type": "integer", "enum": list(range(1, _BEST_OVERALL + 1))}
    return Schema("review", _object(parts))


def parse_overall(reply: str) -> Parsed:
    """The overall score 1-10 with the critique as rationale; value None with a reason otherwise. Never
    raises."""
    document, reason = json_reply(reply)
    if reason:
        return Parsed(reason=reason)
    if document is not None:
        scores, critique = document.all("score"), words(document.all("critique"))
        if len(scores) != 1:
            return Parsed(rationale=critique, reason="two verdicts" if scores else "no verdict: no score")
        tail: str | None = scalar(scores[0])
    else:
        tail, before, reason = final_line(reply, "Overall score:")
        critique = before or None
    if tail is None:
        return Parsed(rationale=critique, reason=reason)
    value, reason = whole_number(tail, 1, _BEST_OVERALL)
    return Parsed(None if value is None else float(value), critique, reason or None)


def repair_overall(*, structured: bool = False) -> str:
    """The turn that asks for the overall score alone, after a reply that could not be read."""
    form = '{"score": <number>}' if structured else "Overall score: <number>"
    note = f"<number> is a whole number from 1 to {_BEST_OVERALL}."
    return render(_PACKAGE, "rubrics/repair.md", form=form, note=note, structured=structured)


def _wanted(rubric: Aspect) -> str:
    return f"a whole number from 1 to {_BEST}" + (", or N/A" if rubric.not_applicable else "")


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _read_section(found: Sequence[Section], number: int, rubric: Aspect) -> Parsed:
    if len(found) != 1:
        return Parsed(reason=f"{'two sections' if found else 'no section'}: Text {number}")
    section = found[0]
    if len(section.ratings) != 1:
        why = "no rating" if not section.ratings else "two ratings"
        return Parsed(rationale=section.rationale, reason=f"{why}: Text {number}")
    if section.unsure:
        return Parsed(rationale=section.rationale, reason=f"rating below a quotation: Text {number}")
    types, untold = _types(section.types, rubric)
    if _NA.fullmatch(trimmed(section.ratings[0])):
        reason = NOT_APPLICABLE if rubric.not_applicable else "not a whole number: N/A is no grade here"
        return Parsed(rationale=section.rationale, reason=reason, types=types)
    value, reason = whole_number(section.ratings[0], 1, _BEST)
    if value is None:
        return Parsed(rationale=section.rationale, reason=reason)
    return Parsed(float(value), section.rationale, untold, types=types)


def _types(written: Sequence[str], rubric: Aspect) -> tuple[tuple[int, ...], str | None]:
    """The kinds named, and why they cannot be told; no kinds for an aspect that has none."""
    if not rubric.types:
        return (), None
    if len(written) != 1:
        return (), "types unread: " + ("two lines" if written else "no line")
    text = trimmed(written[0]).removesuffix(".")
    if text.casefold() == "none":
        return (), None
    numbers = [int(one) for one in text.split(",")] if _NUMBERS.fullmatch(text) else []
    if not numbers or any(number not in rubric.types for number in numbers):
        return (), f"types unread: {text[:40]!r}"
    return tuple(sorted(set(numbers))), None
