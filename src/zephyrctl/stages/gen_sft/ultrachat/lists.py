"""Reading a reply that was to be a list: one item to a line, numbered or with bullets."""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST_ITEM = 2000
"""Characters; what is longer is no subtopic and no opening message."""

_NUMBERED = re.compile(r"\s*(?:#+\s+)?(?:\*\*)?\d{1,3}\s?[.):](?:\*\*)?\s+(?P<item>\S.*)")
_BULLETED = re.compile(r"\s*[-*•–]\s+(?P<item>\S.*)")
_WRAPPED = re.compile(r"(?P<mark>\*\*|__|\"|“|`)(?P<inside>[^*_\"“”`]+)(?:(?P=mark)|”)")


@dataclass(frozen=True)
class Listed:
    """The items of a reply, and how many of its lines are none: `ignored` are no items (a preamble, a heading, lines
    that go on from one above), `repeated` say what an earlier item says, `unusable` hold no word or far too much."""

    items: tuple[str, ...]
    ignored: int = 0
    repeated: int = 0
    unusable: int = 0


def read_list(text: str) -> Listed:
    """The items of a list.

    The first line that looks like an item decides whether items are numbered or have bullets; lines of the other
    form are ignored, so bullets below a numbered item are none of the list.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    form = next((f for line in lines for f in (_NUMBERED, _BULLETED) if f.fullmatch(line)), None)
    items: dict[str, str] = {}
    ignored = repeated = unusable = 0
    for line in lines:
        found = None if form is None else form.fullmatch(line)
        if found is None:
            ignored += 1
            continue
        item = _bare(found["item"])
        key = plain_form(item)
        if not key or len(item) > LONGEST_ITEM:
            unusable += 1
        elif key in items:
            repeated += 1
        else:
            items[key] = item
    return Listed(tuple(items.values()), ignored, repeated, unusable)


def plain_form(text: str) -> str:
    """The letters and digits of a text in lower case, words apart: equal for texts that say the same."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _bare(item: str) -> str:
    """The item without marks around all of it."""
    item = item.strip()
    wrapped = _WRAPPED.fullmatch(item)
    return wrapped["inside"].strip() if wrapped else item
