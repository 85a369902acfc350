"""The sections of a reply that rates several texts: what stands below which label, in words or as JSON.

Both forms bind by label (`Text 2`, `"text_2"`), never by place: a preamble, blank lines or another order cannot
shift anything. A line that looks like a label but is none that was asked for (`Text two`, `Answer 2:`) ends a section:
what follows belongs to nobody, least of all to the text before. A rating is asked for above all words; where it stands
below them it counts only in a reply that quotes nothing, for words can hold a rating that the judged text brought
along, with whatever hides the judge's own (an open fence, a label). JSON counts only where it is the whole reply; a
reply that begins with `{` is never read in words, so nothing inside a broken string can pass for a section.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from zephyrctl.judges.base import answer_part, bare, own_lines
from zephyrctl.providers.base import clean_text

_LABEL = re.compile(r"text ([0-9]{1,3}) ?:?", re.IGNORECASE)
_HEADING = re.compile(
    r"(?:text|answer|response|completion|candidate)\b[\s#_-]*\w+(?:\s*[:(\[\u2013\u2014-].*)?", re.IGNORECASE
)
"""What looks like a label and is none that was asked for: it ends the section, and what follows belongs to nobody."""
_KEY = re.compile(r"text[ _]?([0-9]{1,3})", re.IGNORECASE)
_RATING = re.compile(r"rating ?:(.*)", re.IGNORECASE)
_TYPES = re.compile(r"types? ?:(.*)", re.IGNORECASE)
_RATIONALE = re.compile(r"rationale ?:.*", re.IGNORECASE)
_RULE = re.compile(r"[-=_*`\s]*")


@dataclass
class Section:
    """What one section holds, as written: every rating, every list of types, the rationale.

    `unsure` = its only rating stands below words in a reply that quotes: whose it is cannot be told.
    """

    ratings: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    rationale: str | None = None
    unsure: bool = False


@dataclass(frozen=True)
class Fields:
    """A JSON object with all its keys, those that occur twice too, in the order written."""

    pairs: tuple[tuple[str, object], ...]

    def all(self, key: str) -> list[object]:
        """The values of a key, compared without case."""
        return [value for name, value in self.pairs if name.casefold() == key]


class _Literal(str):
    """A number as it is written, so that `4.0` and `4` stay apart."""


def json_reply(reply: str) -> tuple[Fields | None, str]:
    """The JSON object that a whole reply is, else None and why not: "" where it does not even look like one.

    Never raises.
    """
    text = answer_part(reply)
    if not text.startswith("{"):
        return None, ""
    try:
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: Fields(tuple(pairs)),
            parse_int=_Literal,
            parse_float=_Literal,
            parse_constant=_Literal,
        )
    except (ValueError, RecursionError):
        return None, "not JSON: it begins with { and cannot be read"
    return (value, "") if isinstance(value, Fields) else (None, "not JSON: not an object")


def sections_of(reply: str) -> tuple[dict[int, list[Section]], str]:
    """The sections by the number of their text, all of them where a label occurs twice; and why there can be none."""
    document, why = json_reply(reply)
    if why:
        return {}, why
    return (_written(reply) if document is None else _as_json(document)), ""


def words(said: Sequence[object]) -> str | None:
    """The first of some JSON values where it is text, as it can be stored; None where there is none."""
    return clean_text(said[0]).strip() or None if said and isinstance(said[0], str) else None


def scalar(value: object) -> str:
    """A JSON value as it would stand after a colon; what is neither text nor number as its repr."""
    return str(value) if isinstance(value, str) else repr(value)


def _as_json(document: Fields) -> dict[int, list[Section]]:
    found: dict[int, list[Section]] = {}
    for key, value in document.pairs:
        label = _KEY.fullmatch(key)
        if label is None:
            continue
        section = Section()
        if isinstance(value, Fields):
            section.ratings = [scalar(one) for one in value.all("rating")]
            section.types = [_listed(one) for one in value.all("types")]
            section.rationale = words(value.all("rationale"))
        found.setdefault(int(label[1]), []).append(section)
    return found


def _listed(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(scalar, value)) or "none"
    return scalar(value)


def _written(reply: str) -> dict[int, list[Section]]:
    found: dict[int, list[Section]] = {}
    current: list[tuple[str, bool]] | None = None
    bodies: list[tuple[int, list[tuple[str, bool]]]] = []
    quotes, hidden = False, set[int]()
    for line, own in own_lines(answer_part(reply)):
        said = bare(line) if own else ""
        quotes = quotes or not own
        if not own and (label := _LABEL.fullmatch(bare(line))):
            hidden.add(int(label[1]))
        if label := _LABEL.fullmatch(said):
            current = []
            bodies.append((int(label[1]), current))
        elif _HEADING.fullmatch(said):
            current, quotes = None, True
        elif current is not None:
            current.append((line, own))
    quotes = quotes or len({number for number, _ in bodies}) < len(bodies)
    for number, lines in bodies:
        found.setdefault(number, []).append(_section(lines, quotes))
    for number in hidden & found.keys():
        # one of the two is the judge's own, and a fence that a text brought along may hide just that one
        found[number].append(Section())
    return found


def _section(lines: Sequence[tuple[str, bool]], quotes: bool) -> Section:
    """One section; `quotes` = the reply holds lines that are not, or may not be, its author's own."""
    section = Section()
    rationale: list[str] | None = None
    words_above = False
    for line, own in lines:
        said = bare(line) if own else ""
        if rating := _RATING.fullmatch(said):
            section.unsure = quotes and words_above and not section.ratings
            section.ratings.append(rating[1])
            continue
        words_above = words_above or not (own and (_RULE.fullmatch(line) or _TYPES.fullmatch(said)))
        if types := _TYPES.fullmatch(said):
            section.types.append(types[1])
        elif rationale is not None:
            rationale.append(line)
        elif _RATIONALE.fullmatch(said):
            rationale = [line[line.index(":") + 1 :].lstrip(" *")]
    while rationale and _RULE.fullmatch(rationale[-1]):
        rationale.pop()
    section.rationale = "\n".join(rationale or []).strip() or None
    return section
