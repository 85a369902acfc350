"""The single-answer judge: one answer to one conversation, graded 1-10."""

from collections.abc import Sequence

from zephyrctl.judges.base import Parsed, final_line, in_brackets, quoted, whole_number
from zephyrctl.judges.templates import render
from zephyrctl.records import Message


def prompt(conversation: Sequence[Message], answer: str) -> str:
    """The request to grade `answer` as the next turn of `conversation`."""
    return render("zephyrctl.judges", "rubrics/single.md", blocks=quoted(conversation, ANSWER=answer))


def parse(reply: str) -> Parsed:
    """The grade 1-10 with the judgement as rationale; value None with a reason otherwise. Never raises."""
    tail, before, reason = final_line(reply, "Rating:")
    if tail is None:
        return Parsed(rationale=before or None, reason=reason)
    inner = in_brackets(tail)
    if inner is None:
        return Parsed(rationale=before or None, reason=f"not in [[ ]]: {tail[:40]!r}")
    value, reason = whole_number(inner, 1, 10)
    return Parsed(None if value is None else float(value), before or None, reason or None)
