"""Faults that a token row can have whatever made it: what a stage counts before it trains.

They are the faults that made other people's models repeat themselves or never stop: two beginning-of-sequence tokens, a
closing token that is followed by another, an answer whose closing token bears no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zephyrctl.chat.layout import find_ends
from zephyrctl.chat.rules import TokenRules
from zephyrctl.chat.tokenise import encode

FAULTS = {
    "bos_missing": "no beginning-of-sequence token at the start, and one is asked for",
    "bos_repeated": "more than one beginning-of-sequence token",
    "eos_repeated": "a closing token is followed by another one that bears loss",
    "end_unlearned": "the last answer's closing token bears no loss, or is not there",
}
"""The names that `lint` gives, and what they mean."""


@dataclass(frozen=True)
class Marks:
    """The ids by which a tokenizer's rows are told: its beginning-of-sequence token, all that close an answer, and what
    its template puts between a closing token and the next turn (`gap`, as in Zephyr's newline)."""

    bos: int | None
    ends: frozenset[int]
    gap: tuple[int, ...]


def read_marks(tokenizer: Any) -> Marks:
    """The marks of a tokenizer and its template. Raises UsageError where the template closes no answer."""
    ends = find_ends(tokenizer)
    closes = [encode(tokenizer, one) for one in (ends.last, ends.middle) if one]
    gap = encode(tokenizer, ends.tail)[len(closes[0]) :]
    ids = frozenset({int(tokenizer.eos_token_id), *(one[-1] for one in closes)})
    bos = tokenizer.bos_token_id
    return Marks(None if bos in ids else bos, ids, tuple(gap))


def lint(ids: Sequence[int], bears: Sequence[bool], marks: Marks, rules: TokenRules) -> list[str]:
    """The names (of `FAULTS`) of what is wrong with one row: `ids`, and for each whether it bears loss (a preference:
    prompt without, answer with loss)."""
    faults = []
    if marks.bos is not None:
        if rules.bos and ids[:1] != [marks.bos]:
            faults.append("bos_missing")
        if ids.count(marks.bos) > 1:
            faults.append("bos_repeated")
    if rules.close != "template+eos" and any(_repeats(ids, bears, end, marks) for end in _places(ids, marks)):
        faults.append("eos_repeated")
    if not _learns_to_stop(ids, bears, marks):
        faults.append("end_unlearned")
    return faults


def _places(ids: Sequence[int], marks: Marks) -> list[int]:
    return [place for place, token in enumerate(ids) if token in marks.ends]


def _repeats(ids: Sequence[int], bears: Sequence[bool], end: int, marks: Marks) -> bool:
    """Whether behind the closing token at `end` stands another that bears loss, at once or behind the template's
    gap."""
    for place in {end + 1, end + 1 + len(marks.gap)}:
        behind = ids[end + 1 : place]
        if (
            place < len(ids)
            and ids[place] in marks.ends
            and bears[place]
            and tuple(behind) in ((), marks.gap)
        ):
            return True
    return False


def _learns_to_stop(ids: Sequence[int], bears: Sequence[bool], marks: Marks) -> bool:
    last = len(ids) - 1
    while last >= 0 and not bears[last]:
        last -= 1
    behind = last - len(marks.gap)
    if last >= 0 and ids[last] in marks.ends:
        return True
    return behind >= 0 and tuple(ids[behind + 1 : last + 1]) == marks.gap and ids[behind] in marks.ends
