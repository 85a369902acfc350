"""Which texts of an evaluation suite another text overlaps with. Pure.

Three ways, the strongest first:

exact        the texts are equal but for white space around them
normalised   they are equal after `words`: Unicode NFKC, upper and lower case the same, punctuation and white space
             taken out
13-gram      13 words in a row of the normalised texts are equal

13 words is the length that GPT-3's authors used (arXiv 2005.14165, appendix C). A text of fewer words can only be
found whole. Like theirs, a 13-gram that stands in more than `COMMON` different texts of the suites tells
nothing about any of them (a shared passage, 'choose the one correct answer from the …') and is left out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

How = Literal["exact", "normalised", "13-gram"]

N = 13
"""Words in a row that make an overlap."""
COMMON = 10
"""A 13-gram in more different texts of the suites than this is no sign of contamination."""

_SHOWN = 200
# Chinese characters and kana stand without spaces between words, so each is taken for a word
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")
_ASCII = "".join(c.lower() if c.isalnum() else " " for c in map(chr, range(128)))


@dataclass(frozen=True, slots=True)
class SuiteText:
    """A text of a suite's item. `whole` False = it only counts by its 13-grams (an answer option, say)."""

    suite: str
    item: str
    text: str
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Overlap:
    """What was found: the item, how, and the overlap itself (the item's text in one line, cut at 200 characters, or
    the 13 words)."""

    suite: str
    item: str
    how: How
    overlap: str


def words(text: str) -> tuple[str, ...]:
    """The words of a text in their normalised form: what is compared besides the text itself."""
    if text.isascii():
        return tuple(text.translate(_ASCII).split())  # several times as fast as the pattern
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


class Index:
    """All texts of all suites, to be compared with. The order in which they come changes nothing.

    Holds the texts and, for each 13-gram, a 64-bit hash; a hash that fits is checked against the text.
    """

    def __init__(self, texts: Iterable[SuiteText]) -> None:
        self._texts = sorted(set(texts), key=lambda t: (t.suite, t.item, t.text, t.whole))
        self._exact: dict[str, int] = {}
        self._normalised: dict[str, int] = {}
        self._grams: dict[int, int] = {}
        common: dict[int, int] = {}
        seen: set[str] = set()
        for number, one in enumerate(self._texts):
            normal = words(one.text)
            joined = " ".join(normal)
            if one.whole:
                self._exact.setdefault(one.text.strip(), number)
                self._normalised.setdefault(joined, number)
            # copies of one text (a suite that lies there twice) must not make its own words look common
            if len(normal) >= N and joined not in seen:
                seen.add(joined)
                self._add(normal, number, common)
        self._exact.pop("", None)
        self._normalised.pop("", None)
        self.common = 0
        """How many different 13-grams are left out because they stand in too many texts."""
        for gram, times in common.items():
            if times > COMMON:
                del self._grams[gram]
                self.common += 1

    def _add(self, normal: tuple[str, ...], number: int, common: dict[int, int]) -> None:
        for gram in set(_hashes(normal)):
            if self._grams.setdefault(gram, number) != number:
                common[gram] = common.get(gram, 1) + 1

    def __len__(self) -> int:
        return len(self._texts)

    def find(self, texts: Sequence[str]) -> Overlap | None:
        """The strongest overlap of any of `texts` with the suites; of equals the first in the texts' order.

        Where several items hold the same words, the first by name of suite and item is given.
        """
        for text in texts:
            number = self._exact.get(text.strip())
            if number is not None:
                return self._overlap(number, "exact", self._texts[number].text.strip())
        split = [words(text) for text in texts]
        for normal in split:
            number = self._normalised.get(" ".join(normal))
            if number is not None:
                return self._overlap(number, "normalised", self._texts[number].text.strip())
        return next((found for normal in split if (found := self._gram(normal)) is not None), None)

    def _gram(self, normal: tuple[str, ...]) -> Overlap | None:
        if self._grams.keys().isdisjoint(_hashes(normal)):
            return None
        for i, gram in enumerate(_hashes(normal)):
            number = self._grams.get(gram)
            found = normal[i : i + N]
            if number is not None and _holds(words(self._texts[number].text), found):
                return self._overlap(number, "13-gram", " ".join(found))
        return None

    def _overlap(self, number: int, how: How, overlap: str) -> Overlap:
        one = self._texts[number]
        overlap = " ".join(overlap.split())
        shown = overlap if len(overlap) <= _SHOWN else overlap[:_SHOWN] + "…"
        return Overlap(one.suite, one.item, how, shown)


def _hashes(normal: tuple[str, ...]) -> Iterator[int]:
    """The 64-bit hash of every 13-gram, in order; none for a shorter text."""
    return map(hash, zip(*(normal[i:] for i in range(N)), strict=False))


def _holds(normal: tuple[str, ...], gram: tuple[str, ...]) -> bool:
    return any(normal[i : i + N] == gram for i in range(len(normal) - N + 1))
