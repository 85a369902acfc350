"""The UltraFeedback judge: four aspects rated 1-5 over all texts at once, and a critique with an overall
score 1-10 for one.

The split into aspects, the scales and the calls are those of UltraFeedback (arXiv 2310.01377); the wording is
our own. Ratings are bound to texts by the label `Text N` of their section, so a preamble, blank lines or
another order of the sections cannot shift them.
"""

import re
from collections.abc import Sequence
from functools import cache

from zephyrctl.judges.base import (
    NOT_APPLICABLE,
    Parsed,
    bare,
    final_line,
    quoted,
    whole_number,
)
from zephyrctl.judges.templates import render, source
from zephyrctl.records import Message

ASPECTS: tuple[str, ...] = ("instruction_following", "honesty", "truthfulness", "helpfulness")

_PACKAGE = "zephyrctl.judges"
_OR_NA = ", or N/A where honesty cannot be judged, as in fiction"
_LABEL = re.compile(r"text ([0-9]{1,3}) ?:?", re.IGNORECASE)
_RATING = re.compile(r"rating ?:(.*)", re.IGNORECASE)
_RATIONALE = re.compile(r"rationale ?:(.*)", re.IGNORECASE)
_NA = re.compile(r"n/?a", re.IGNORECASE)


@cache
def _descriptions() -> dict[str, str]:
    import yaml

    return {
        str(k): str(v).strip() for k, v in yaml.safe_load(source(_PACKAGE, "rubrics/aspects.yaml")).items()
    }


def aspect_prompt(conversation: Sequence[Message], texts: Sequence[str], aspect: str) -> str:
    """The request to rate `texts`, in the order shown, on one aspect. Raises KeyError for an aspect without a
    rubric."""
    return render(
        _PACKAGE,
        "rubrics/aspect.md",
        aspect=aspect,
        description=_descriptions()[aspect],
        or_na=_OR_NA if aspect == "honesty" else "",
        blocks=quoted(conversation, **{f"TEXT_{i}": text for i, text in enumerate(texts, 1)}),
    )


def parse_aspect(reply: str, n: int, aspect: str) -> list[Parsed]:
    """One result for each of the `n` texts shown, by the label of its section. Never raises.

    Missing (value None, with a reason): a text without a section or with two, a section without exactly one
    `Rating:` line, a value that is not 1-5 (or N/A, for honesty only). A label beyond `n` voids the whole
    reply: its author counted other texts than were shown.
    """
    sections = _sections(reply)
    strangers = sorted(number for number in sections if not 1 <= number <= n)
    if strangers:
        why = f"extra section: Text {strangers[0]} where {n} texts were shown"
        return [Parsed(reason=why) for _ in range(n)]
    return [_read_section(sections.get(number, []), number, aspect) for number in range(1, n + 1)]


def _sections(reply: str) -> dict[int, list[list[str]]]:
    """The lines below each label; a label that occurs twice has two lists."""
    sections: dict[int, list[list[str]]] = {}
    current: list[str] | None = None
    for line in reply.split("\n"):
        label = _LABEL.fullmatch(bare(line))
        if label:
            current = []
            sections.setdefault(int(label[1]), []).append(current)
        elif current is not None:
            current.append(line)
    return sections


def _read_section(found: list[list[str]], number: int, aspect: str) -> Parsed:
    if len(found) != 1:
        return Parsed(reason=f"{'two sections' if found else 'no section'}: Text {number}")
    lines = found[0]
    ratings = [hit[1] for line in lines if (hit := _RATING.fullmatch(bare(line)))]
    rationale = _rationale(lines)
    if len(ratings) != 1:
        return Parsed(rationale=rationale, reason="no rating" if not ratings else "two ratings")
    if _NA.fullmatch(ratings[0].strip()):
        reason = NOT_APPLICABLE if aspect == "honesty" else f"not a whole number: N/A for {aspect}"
        return Parsed(rationale=rationale, reason=reason)
    value, reason = whole_number(ratings[0], 1, 5)
    return Parsed(None if value is None else float(value), rationale, reason or None)


def _rationale(lines: list[str]) -> str | None:
    for place, line in enumerate(lines):
        if _RATIONALE.fullmatch(bare(line)):
            opening = line[line.index(":") + 1 :].lstrip(" *")
            rest = [opening, *(x for x in lines[place + 1 :] if not _RATING.fullmatch(bare(x)))]
            return "\n".join(rest).strip() or None
    return None


def overall_prompt(conversation: Sequence[Message], answer: str) -> str:
    """The request for a critique of one answer and its overall score."""
    return render(_PACKAGE, "rubrics/overall.md", blocks=quoted(conversation, ANSWER=answer))


def parse_overall(reply: str) -> Parsed:
    """The overall score 1-10 with the critique as rationale; value None with a reason otherwise. Never
    raises."""
    tail, before, reason = final_line(reply, "Overall score:")
    if tail is None:
        return Parsed(rationale=before or None, reason=reason)
    value, reason = whole_number(tail, 1, 10)
    return Parsed(None if value is None else float(value), before or None, reason or None)
