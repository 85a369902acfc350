"""The pairwise judge: which of two answers to one conversation is better, or a tie."""

from collections.abc import Sequence

from zephyrctl.judges.base import Letter, Parsed, final_line, in_brackets, quoted
from zephyrctl.judges.templates import render
from zephyrctl.records import Message

_LETTERS: dict[str, Letter] = {"A": "A", "B": "B", "C": "tie"}


def prompt(conversation: Sequence[Message], a: str, b: str) -> str:
    """The request to compare answer A with answer B as the next turn of `conversation`."""
    return render(
        "zephyrctl.judges", "rubrics/pairwise.md", blocks=quoted(conversation, ANSWER_A=a, ANSWER_B=b)
    )


def read(reply: str) -> Parsed:
    """The verdict as `letter` with the judgement as rationale; letter None with a reason otherwise. Never
    raises."""
    tail, before, reason = final_line(reply, "Verdict:")
    if tail is None:
        return Parsed(rationale=before or None, reason=reason)
    letter = _LETTERS.get(in_brackets(tail) or "")
    if letter is None:
        return Parsed(rationale=before or None, reason=f"not A, B or C: {tail[:40]!r}")
    return Parsed(rationale=before or None, letter=letter)


def parse(reply: str) -> Letter | None:
    """The verdict alone: A, B, tie, or None where the reply cannot be read. Never raises."""
    return read(reply).letter
