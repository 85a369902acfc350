"""What all judges share: a parsed reply, the conversation as quoted blocks, and the rules for reading
numbers.

Parsers are strict and total: every string gives a result and none raises. What cannot be read is *missing*,
with a reason; it is never a default. How a line is read:

* lines are separated by `\\n` only; outer white space, `*`, and `#`, `>` or `-` in front do not count
  (`**Rating:** 4`);
* a number is a whole number in decimal digits, alone (`4`) or over the top of its scale (`4/5`, `10/10`);
  nothing else may stand on the line: `4.5`, `04`, `four`, `4 (good)` and `4/10` on a scale to 5 are not
  ratings;
* a final verdict (`Overall score: 7`, `Rating: [[7]]`, `Verdict: [[A]]`) counts when exactly one line of the
  reply begins like it and that line is the last one; a verdict that was only quoted on the way is therefore
  never taken.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zephyrctl.judges.templates import digest
from zephyrctl.quote import quote_blocks
from zephyrctl.records import Message

RUBRICS = ("aspect.md", "aspects.yaml", "overall.md", "pairwise.md", "single.md")

Letter = Literal["A", "B", "tie"]

NOT_APPLICABLE = "n/a"

_WHOLE = re.compile(r"(0|[1-9][0-9]{0,3})(?: ?/ ?(0|[1-9][0-9]{0,3}))?")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one reply says about one text. `value` (or `letter`, for pairwise) None = missing.

    `reason` then says why: a few fixed words, and after a colon the particulars.
    """

    value: float | None = None
    rationale: str | None = None
    reason: str | None = None
    letter: Letter | None = None

    @property
    def failed(self) -> bool:
        """Whether the reply could not be read, so that asking again makes sense (a stated N/A is an
        answer)."""
        return self.value is None and self.letter is None and self.reason != NOT_APPLICABLE


def rubric_digests() -> dict[str, str]:
    """The hash of every shipped rubric file, by name: what manifests and step keys hold."""
    return {f"judges/{name}": digest("zephyrctl.judges", f"rubrics/{name}") for name in RUBRICS}


def conversation_blocks(conversation: Sequence[Message]) -> dict[str, str]:
    """The messages by block name, in order: `USER 1`, `ASSISTANT 1`, `USER 2`, ...; a system message is
    `SYSTEM`."""
    blocks: dict[str, str] = {}
    seen: dict[str, int] = {}
    for message in conversation:
        number = seen[message.role] = seen.get(message.role, 0) + 1
        name = message.role.upper()
        blocks[name if name == "SYSTEM" and number == 1 else f"{name} {number}"] = message.content
    return blocks


def quoted(conversation: Sequence[Message], **judged: str) -> str:
    """The conversation and the texts under judgement (`ANSWER`, `ANSWER_A`, `TEXT_1` ...) as fenced
    blocks."""
    named = {name.replace("_", " "): text for name, text in judged.items()}
    return quote_blocks(conversation_blocks(conversation) | named)


def bare(line: str) -> str:
    """A line without markdown emphasis and marks in front (`**Text 1:**` -> `Text 1:`)."""
    return line.replace("*", "").strip().lstrip("#>- \t").rstrip()


def whole_number(text: str, low: int, high: int) -> tuple[int | None, str]:
    """The whole number that `text` is, within `low..high`, or None and why not."""
    found = _WHOLE.fullmatch(text.strip())
    if found is None:
        return None, f"not a whole number: {text.strip()[:40]!r}"
    if found[2] is not None and int(found[2]) != high:
        return None, f"wrong scale: {found[0]} instead of a scale to {high}"
    number = int(found[1])
    if not low <= number <= high:
        return None, f"out of range: {number} is not in {low}-{high}"
    return number, ""


def final_line(reply: str, opening: str) -> tuple[str | None, str, str]:
    """What follows `opening` on the last line, the text before that line, and a reason where there is none.

    `opening` (such as `Overall score:`) is compared without case. Two lines that begin with it are no
    verdict.
    """
    lines = [bare(line) for line in reply.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    hits = [i for i, line in enumerate(lines) if line.casefold().startswith(opening.casefold())]
    if not hits:
        return None, reply.strip(), f"no verdict: no line begins '{opening}'"
    if len(hits) > 1:
        return None, reply.strip(), f"two verdicts: {len(hits)} lines begin '{opening}'"
    if hits[0] != len(lines) - 1:
        return None, reply.strip(), f"verdict not last: text follows '{opening}'"
    before = "\n".join(reply.split("\n")[: hits[0]]).strip()
    return lines[-1][len(opening) :].strip(), before, ""


def in_brackets(text: str) -> str | None:
    """What stands in `[[...]]` when the text is nothing else, or None."""
    return text[2:-2].strip() if len(text) > 4 and text.startswith("[[") and text.endswith("]]") else None
