"""Duplicates: equal dialogues by hash, and nearly equal ones by MinHash. The first of them in row order is kept."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from zephyrctl.curation.base import Dialogue, Dropped
from zephyrctl.curation.contamination import words
from zephyrctl.errors import MissingExtra
from zephyrctl.records import Message

VERSION = 1
_BLANKS = re.compile(r"\s+")
_SHINGLE = 5
"""Words in a shingle."""
_PERMUTATIONS = 128
_OVERLOOK_LITTLE = (0.05, 0.95)
"""How much false and overlooked candidates count when the bands of the index are chosen."""


class ExactDuplicates:
    """The filter `exact-duplicates`: the same messages, differences of white space aside; `=prompt` compares only what
    the user and the system say first."""

    learns = False

    def __init__(self, prompt_only: bool = False) -> None:
        self.name = "exact-duplicates=prompt" if prompt_only else "exact-duplicates"
        self._prompt_only = prompt_only
        self._seen: set[bytes] = set()

    def learn(self, dialogue: Dialogue) -> None:
        """Nothing is learned: an earlier row is known when a later one comes."""

    def apply(self, dialogue: Dialogue) -> list[list[Message]] | Dropped:
        """The dialogue, or Dropped when an earlier one says the same."""
        compared = _prompt(dialogue) if self._prompt_only else dialogue
        text = "\x1f".join(f"{m.role}\x1e{_BLANKS.sub(' ', m.content).strip()}" for m in compared)
        key = hashlib.sha256(text.encode()).digest()[:16]
        if key in self._seen:
            what = "prompt" if self._prompt_only else "dialogue"
            return Dropped("exact_duplicate", f"an earlier row has the same {what}")
        self._seen.add(key)
        return [list(dialogue)]


class NearDuplicates:
    """The filter `near-duplicates=0.8`: the Jaccard similarity of the 5-word shingles of two dialogues, estimated with
    128 permutations (a standard error of about 0.04), is at least the threshold. Needs the extra `dedup`."""

    learns = False

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHashLSH
        except ImportError as error:
            raise MissingExtra("datasketch", "dedup") from error
        self.name = f"near-duplicates={threshold:g}"
        self._threshold = threshold
        # what the index overlooks nobody finds again, what it finds in vain the sketches tell apart
        self._index: Any = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=_OVERLOOK_LITTLE)
        self._sketches: list[Any] = []

    def learn(self, dialogue: Dialogue) -> None:
        """Nothing is learned: an earlier row is known when a later one comes."""

    def apply(self, dialogue: Dialogue) -> list[list[Message]] | Dropped:
        """The dialogue, or Dropped with the similarity to the first earlier one that is as near."""
        from datasketch import LeanMinHash, MinHash

        sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update_batch(_shingles(dialogue))
        lean = LeanMinHash(sketch)
        for other in sorted(self._index.query(lean)):  # the index gives candidates; the sketches decide
            similarity = self._sketches[other].jaccard(lean)
            if similarity >= self._threshold:
                return Dropped("near_duplicate", f"similarity {similarity:.2f} to an earlier row")
        self._index.insert(len(self._sketches), lean, check_duplication=False)
        self._sketches.append(lean)
        return [list(dialogue)]


def _prompt(dialogue: Dialogue) -> list[Message]:
    first = next((n for n, m in enumerate(dialogue) if m.role == "assistant"), len(dialogue))
    return list(dialogue[:first])


def _shingles(dialogue: Dialogue) -> list[bytes]:
    said = [word for m in dialogue for word in words(m.content)]
    if len(said) <= _SHINGLE:
        return [" ".join(said).encode()]
    return sorted({" ".join(said[i : i + _SHINGLE]).encode() for i in range(len(said) - _SHINGLE + 1)})
