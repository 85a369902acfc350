"""Is a text new? ROUGE-L against every text of a pool, decided exactly as the package `rouge_score` decides it.

ROUGE-L (Lin 2004, section 3) compares two texts by the longest common subsequence (LCS) of their words: with
`precision = lcs / words of one` and `recall = lcs / words of the other`, `F = 2 * precision * recall / (precision +
recall)`. Self-Instruct (section 2.2 and its code) drops a made instruction whose F with any earlier one is above 0.7.
Words are those of `rouge_score` without stemming: the text in lower case, cut at everything but a-z and 0-9. So a
text without any such letter has no words, is similar to nothing and always new.

Comparing with every text is far too slow for a large pool. Two bounds leave few of them, and neither can leave
out a text that counts:

1. *Length.* LCS <= min(m, n), so F > t needs lengths that are not too different.
2. *Shared words.* LCS <= the number of words that two texts share, counted as often as both have them. If n - k + 1 of
   a text's n words are looked up in an index, a pool text that shares none of them shares fewer than k words in all.
   The rarest words are looked up.

The LCS of those left is found with bits, all columns of a row at a time (Hyyrö 2004), which is exact too.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

_WORD = re.compile("[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Similar:
    """The pool's text nearest to another: ROUGE-L F, and its place in the order of `add` (from 0)."""

    score: float
    index: int


class Pool:
    """Texts that others are compared with.

    `add` puts a text in, `most_similar` finds the nearest one above a threshold. Both depend on the texts alone, not on
    the order in which they came, but for ties: the earliest of equally near texts is named.
    """

    def __init__(self) -> None:
        self._words: dict[tuple[str, int], int] = {}
        """Numbers for words; a text's second `the` is another word than its first, so that shared words are counted
        as often as both texts have them."""
        self._texts: list[list[int]] = []
        """Words of each text, in order; all occurrences of a word have the number of its first."""
        self._found_in: list[list[int]] = []
        """For each number, the texts that have that occurrence of that word."""

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Puts a text into the pool."""
        index, words = len(self._texts), tokens(text)
        for key in _occurrences(words):
            number = self._words.setdefault(key, len(self._words))
            if number == len(self._found_in):
                self._found_in.append([])
            self._found_in[number].append(index)
        self._texts.append([self._words[word, 1] for word in words])

    def most_similar(self, text: str, threshold: float) -> Similar | None:
        """The nearest text whose F is above `threshold`; None where there is none, so that `text` is new.

        Raises ValueError for a threshold outside 0 to 1.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"a threshold of ROUGE-L lies between 0 and 1, not at {threshold}")
        words = tokens(text)
        length = len(words)
        least = _fewest(length, threshold)
        if least > length:
            return None
        lists = sorted((self._texts_with(key) for key in _occurrences(words)), key=len)
        looked_up = length - least + 1
        shared = Counter(chain.from_iterable(lists[:looked_up]))
        rest = length - looked_up
        columns = self._columns(words)
        best: Similar | None = None
        for index, count in shared.items():
            other = self._texts[index]
            if count + rest < _needed(length, len(other), threshold):
                continue
            score = rouge_f(_lcs(columns, length, other), length, len(other))
            if score > threshold and (best is None or (-score, index) < (-best.score, best.index)):
                best = Similar(score, index)
        return best

    def _texts_with(self, key: tuple[str, int]) -> list[int]:
        number = self._words.get(key)
        return [] if number is None else self._found_in[number]

    def _columns(self, words: list[str]) -> dict[int, int]:
        """For each word of a text that the pool knows, the places where the text has it, as bits."""
        columns: dict[int, int] = {}
        for place, word in enumerate(words):
            number = self._words.get((word, 1))
            if number is not None:
                columns[number] = columns.get(number, 0) | 1 << place
        return columns


def tokens(text: str) -> list[str]:
    """The words that ROUGE-L compares: lower case, runs of a-z and 0-9."""
    return _WORD.findall(text.lower())


def rouge_f(lcs: int, m: int, n: int) -> float:
    """ROUGE-L F of two texts of `m` and `n` words, with the roundings of `rouge_score`."""
    if lcs == 0:
        return 0.0
    precision, recall = lcs / n, lcs / m
    return 2 * precision * recall / (precision + recall)


def _occurrences(words: list[str]) -> list[tuple[str, int]]:
    """Each word with the number of times it has come by then: `a b a` is (a, 1), (b, 1), (a, 2)."""
    seen: Counter[str] = Counter()
    keys = []
    for word in words:
        seen[word] += 1
        keys.append((word, seen[word]))
    return keys


@lru_cache(maxsize=1 << 16)
def _needed(m: int, n: int, threshold: float) -> int:
    """The shortest LCS with F > threshold for texts of `m` and `n` words; more than both have where there is none."""
    lcs = max(1, int(threshold * (m + n) / 2) - 1)
    while lcs <= min(m, n) and rouge_f(lcs, m, n) <= threshold:
        lcs += 1
    return lcs


@lru_cache(maxsize=1 << 12)
def _fewest(n: int, threshold: float) -> int:
    """The fewest words that a text of `n` words shares with any text that is near enough: F is highest where the other
    text has nothing but those."""
    lcs = 1
    while lcs <= n and rouge_f(lcs, lcs, n) <= threshold:
        lcs += 1
    return lcs


def _lcs(columns: dict[int, int], length: int, other: list[int]) -> int:
    """The length of the longest common subsequence of `other` and the text of `length` words behind `columns`."""
    rows = full = (1 << length) - 1
    for word in other:
        matches = columns.get(word)
        if matches is not None:
            met = rows & matches
            rows = ((rows + met) | (rows - met)) & full
    return length - rows.bit_count()
