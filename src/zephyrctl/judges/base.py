"""What all judges share: a parsed reply, the conversation as quoted blocks, and the rules for reading
numbers.

Parsers are strict and total: every string gives a result and none raises. What cannot be read is *missing*,
with a reason; it is never a default. How a reply is read:

* reasoning in `<think>` at the head is left out, and so is a code fence around the whole reply;
* lines are separated by `\n` only; outer white space (invisible characters too), `*`, and `#` or `-` in front do
  not count (`**Rating:** 4`);
* a line that begins with `>` or stands in a code fence is a quotation: it is nobody's rating;
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
from zephyrctl.providers.hosted.reasoning import split_thinking
from zephyrctl.quote import quote_blocks
from zephyrctl.records import Message

RUBRICS = ("aspect.md", "aspects.yaml", "overall.md", "pairwise.md", "repair.md", "single.md")

Letter = Literal["A", "B", "tie"]

NOT_APPLICABLE = "n/a"

_EDGES = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u200c\u200d\u2060\ufeff"
"""White space, and characters that nobody sees."""
_THINK = re.compile(r"<(/?think)>", re.IGNORECASE)
_FENCE = re.compile(r"```[\w-]*[ \t\r]*")
_FENCED = re.compile(r"```[\w-]*[ \t\r]*\n(.*)\n```", re.DOTALL)
_WHOLE = re.compile(r"(0|[1-9][0-9]{0,3})(?: ?/ ?(0|[1-9][0-9]{0,3}))?")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one reply says about one text. `value` (or `letter`, for pairwise) None = missing.

    `reason` then says why: a few fixed words, and after a colon the particulars. Beside a value it says why the
    types that belong to it could not be read.
    """

    value: float | None = None
    rationale: str | None = None
    reason: str | None = None
    letter: Letter | None = None
    types: tuple[int, ...] = ()
    """The numbers of the kinds (of error, of merit) that were named, ascending."""

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
    blocks.

    The tags of reasoning get a space (`</think >`): a judge that repeats one as it stands would seem to end its own
    reasoning there, and all that it said before would be lost.
    """
    named = {name.replace("_", " "): text for name, text in judged.items()}
    blocks = conversation_blocks(conversation) | named
    return quote_blocks({name: _THINK.sub(r"<\1 >", text) for name, text in blocks.items()})


def trimmed(text: str) -> str:
    """The text without white space and invisible characters at its ends."""
    return text.strip(_EDGES)


def bare(line: str) -> str:
    """A line without markdown emphasis and marks in front (`**Text 1:**` -> `Text 1:`)."""
    return trimmed(trimmed(line.replace("*", "")).lstrip("#- \t"))


def answer_part(reply: str) -> str:
    """A reply without the reasoning at its head and without a code fence around all of it."""
    text = trimmed(split_thinking(reply)[1])
    fenced = _FENCED.fullmatch(text)
    return fenced[1] if fenced and "```" not in fenced[1] else text


def own_lines(text: str) -> list[tuple[str, bool]]:
    """The lines of a text, each with whether it is its author's own: quotations (`>`, a code fence) are not."""
    lines, inside = [], False
    for line in text.split("\n"):
        if _FENCE.fullmatch(trimmed(line)):
            inside = not inside
            lines.append((line, False))
        else:
            lines.append((line, not inside and not trimmed(line).startswith(">")))
    return lines


def whole_number(text: str, low: int, high: int) -> tuple[int | None, str]:
    """The whole number that `text` is, within `low..high`, or None and why not."""
    text = trimmed(text)
    found = _WHOLE.fullmatch(text)
    if found is None:
        return None, f"not a whole number: {text[:40]!r}"
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
    answer = answer_part(reply)
    raw = own_lines(answer)
    lines = [bare(line) if own else line for line, own in raw]
    while lines and not trimmed(lines[-1]):
        lines.pop()
    begins = opening.casefold()
    hits = [i for i, line in enumerate(lines) if raw[i][1] and line.casefold().startswith(begins)]
    if not hits:
        return None, answer, f"no verdict: no line begins '{opening}'"
    if len(hits) > 1:
        return None, answer, f"two verdicts: {len(hits)} lines begin '{opening}'"
    if hits[0] != len(lines) - 1:
        return None, answer, f"verdict not last: text follows '{opening}'"
    before = "\n".join(line for line, _ in raw[: hits[0]]).strip()
    return lines[-1][len(opening) :].strip(), before, ""


def in_brackets(text: str) -> str | None:
    """What stands in `[[...]]` when the text is nothing else, or None."""
    return text[2:-2].strip() if len(text) > 4 and text.startswith("[[") and text.endswith("]]") else None
