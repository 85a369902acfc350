"""Truecasing: words that lost their capitals get them back, by the majority casing of the corpus itself.

Learned from words inside sentences: which casing a word mostly has (`nasa` -> `NASA`), with the word after it where
that is clearer (`new york`), and which words end in a full stop that ends no sentence (`e.g.`). Applied: a word in
lower case whose majority casing is another is changed, and the first word of a sentence gets its capital. Words that
have a capital anywhere are never touched, nor is code (see `prose`).

The published ultrachat_200k was truecased because about 5 % of its rows had faults like "Hello. how are you?" (its
dataset card); how it was done was never released, and this is our own way.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from zephyrctl.curation.base import Dialogue, Dropped
from zephyrctl.curation.prose import prose_words
from zephyrctl.records import Message

VERSION = 1
_END = re.compile(r"[.!?…]+[\"'”’)\]*]*\s")
_LIST_ITEM = re.compile(r"\n[ \t]*(?:[-*•–+>|#]+|\(?\w{1,3}[.)])[ \t]*[\"'“‘(\[*]*$")
_GOES_ON = re.compile(r"(?:\.\.+|…|[!?]+[\"'”’»]+)[\"'”’)\]*]*\s*$")
"""Dots that may be a pause, and a quoted cry or question, which `she asked` may follow."""
_INITIALS = re.compile(r"(?:^|\s)[(\"'“‘]*(?:[^\W\d_]\.){2,}\s+$")
_STOPS = "eg ie e g i vs cf al etc approx no fig dr mr mrs ms st jr sr inc ltd co"
"""Words after which a full stop seldom ends a sentence, as a start; the corpus teaches others."""
_ENOUGH, _ENOUGH_TOGETHER = 2, 3
"""Occurrences that a majority needs: of a word, and of a word before another."""
_ALONE, _TOGETHER = 0.6, 0.8
"""The share that makes a majority."""
_TITLE = 0.7
"""Lines of which a larger share of the longer words is capitalised are titles: what is seen there counts for titles
alone."""
_MOST_PAIRS = 2_000_000
_ENOUGH_TEXT = 100_000_000
"""Characters of a corpus after which its casing is known: about 17,000 dialogues as long as UltraChat's."""
_NEAR = 200
"""Characters at both ends of what lies between two words (code, a row of dots) that tell how the second one stands."""

INSIDE, FIRST, ITEM, LINE, COLON, UNSURE = "inside", "first", "list item", "line", "colon", "unsure"
_CUSTOM = (ITEM, LINE, COLON)
"""Places where a capital is a matter of custom: the corpus, and the same text, tell which custom holds."""


@dataclass(frozen=True, slots=True)
class _Token:
    """A word of prose, and how it stands: inside a sentence, at the begin of one, of a line, of a list item."""

    start: int
    end: int
    text: str
    place: str
    before: str
    """The word before, where only a full stop lies between the two."""

    @property
    def lower(self) -> bool:
        return self.text.islower()


class Truecase:
    """The filter `truecase`: sees the whole corpus first, then changes messages and drops none."""

    name = "truecase"
    learns = True

    def __init__(self) -> None:
        self._read = 0
        self._forms: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._titles: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._pairs: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._stops: defaultdict[str, Counter[bool]] = defaultdict(Counter)
        self._customs: dict[str, Counter[bool]] = {place: Counter() for place in _CUSTOM}

    def learn(self, dialogue: Dialogue) -> None:
        """Counts the casings of the words inside the dialogue's sentences. Of a large corpus its first dialogues are
        enough."""
        if self._read >= _ENOUGH_TEXT:
            return
        for message in dialogue:
            self._read += len(message.content)
            for line in _lines(message.content):
                self._learn_line(line)
        if len(self._pairs) > _MOST_PAIRS:  # rare pairs decide nothing
            often = {pair: forms for pair, forms in self._pairs.items() if forms.total() > 1}
            self._pairs = defaultdict(Counter, often)

    def apply(self, dialogue: Dialogue) -> list[list[Message]] | Dropped:
        """The dialogue with its casing restored."""
        return [[Message(role=m.role, content=self.restore(m.content)) for m in dialogue]]

    def restore(self, text: str) -> str:
        """A text with the casing of its lower-case words restored; every other character stays as it is."""
        lines = list(_lines(text))
        customs = self._customs_of(lines)
        parts: list[str] = []
        at = 0
        for line in lines:
            title = _is_title(line)
            for place, token in enumerate(line):
                if not token.lower or (len(token.text) == 1 and token.text != "i"):
                    continue
                following = line[place + 1].text.lower() if place + 1 < len(line) else ""
                better = self._better(token, following, line, title=title, customs=customs)
                if better != token.text:
                    parts += [text[at : token.start], better]
                    at = token.end
        return "".join([*parts, text[at:]]) if parts else text

    def _is_known(self, line: list[_Token]) -> bool:
        """Whether the corpus has most words of a line: a line in another language has other words of the same letters
        (`i ragazzi`)."""
        known = sum(token.text.lower() in self._forms for token in line)
        return 2 * known >= len(line)

    def _better(
        self, token: _Token, following: str, line: list[_Token], *, title: bool, customs: frozenset[str]
    ) -> str:
        if title and token.place == INSIDE:
            forms = self._titles.get(token.text)
            if forms is not None and forms.total() >= _ENOUGH:
                return min(forms, key=lambda form: (-forms[form], form))
            if len(token.text) > 3:
                return token.text[0].upper() + token.text[1:]
        better = self._majority(token.text, following)
        if better != token.text and self._is_known(line):
            return better
        better = token.text
        begins = token.place in customs or (token.place == FIRST and not self._goes_on_after(token.before))
        return better[0].upper() + better[1:] if begins and len(better) > 1 else better

    def _customs_of(self, lines: list[list[_Token]]) -> frozenset[str]:
        """The places that begin with a capital in this text: as most do in it, and in the corpus."""
        here: dict[str, Counter[bool]] = {place: Counter() for place in _CUSTOM}
        for line in lines:
            for token in line:
                if token.place in here:
                    here[token.place][not token.lower] += 1
        return frozenset(
            place
            for place, seen in here.items()
            if seen[True] >= seen[False] - 1 and self._customs[place][True] > 4 * self._customs[place][False]
        )

    def _learn_line(self, line: list[_Token]) -> None:
        title = _is_title(line)
        for place, token in enumerate(line):
            if token.before:
                self._stops[token.before][token.lower] += 1
            if token.place in _CUSTOM:
                self._customs[token.place][not token.lower] += 1
            if token.place != INSIDE:
                continue
            word = token.text.lower()
            (self._titles if title else self._forms)[word][token.text] += 1
            if not title and place + 1 < len(line):
                self._pairs[word, line[place + 1].text.lower()][token.text] += 1

    def _majority(self, word: str, following: str) -> str:
        for forms, enough, share in (
            (self._pairs.get((word, following)), _ENOUGH_TOGETHER, _TOGETHER),
            (self._forms.get(word), _ENOUGH, _ALONE),
        ):
            if forms is None or (total := forms.total()) < enough:
                continue
            if len(forms) == 1 and word in forms:
                return word
            best = min(forms, key=lambda form: (-forms[form], form))
            if forms[best] >= share * total:
                return best
        return word

    def _goes_on_after(self, before: str) -> bool:
        """Whether a sentence mostly goes on after this word and a full stop."""
        seen = self._stops.get(before)
        if seen is not None and seen.total() >= 3:
            return seen[True] > seen[False]
        return before in _STOPS.split()


def _is_title(line: list[_Token]) -> bool:
    """Whether a line is set as a title: nearly all its longer words have capitals."""
    longer = [token for token in line if len(token.text) > 3 and token.place == INSIDE]
    return len(longer) > 0 and sum(not token.lower for token in longer) > _TITLE * len(longer)


def _lines(text: str) -> Iterator[list[_Token]]:
    """The words of prose, line by line."""
    end = -1
    previous = ""
    for words in prose_words(text):
        line: list[_Token] = []
        for start, stop in words:
            place, before = _place(text, end, start, previous)
            word = text[start:stop]
            line.append(_Token(start, stop, word, place, before))
            end, previous = stop, word.lower()
        yield line


def _place(text: str, end: int, start: int, previous: str) -> tuple[str, str]:
    """How a word stands that begins at `start`, when the word before it ended at `end` (-1 = there is none)."""
    gap = text[max(end, 0) : start]
    if len(gap) > 2 * _NEAR:
        gap = gap[:_NEAR] + gap[-_NEAR:]
    if gap == " ":
        return INSIDE, ""
    if _LIST_ITEM.search(gap if end >= 0 else f"\n{gap}"):
        return ITEM, ""
    if end < 0:
        return (FIRST if not gap.strip(" \n\t\"'“‘([*") else UNSURE), ""
    if _INITIALS.search(gap):
        return UNSURE, ""
    if "\n" in gap:
        return (FIRST if _END.search(gap) else LINE), ""
    if _GOES_ON.search(gap):
        return UNSURE, ""
    if _END.search(gap):
        return FIRST, previous if gap.strip() == "." else ""
    if gap.strip("*\"' ") == ":":
        return COLON, ""
    if not gap or gap[0] in ".…" or any(c in gap for c in ":;|=<>{}[]"):
        return UNSURE, ""
    return INSIDE, ""
