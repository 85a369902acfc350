"""Lengths in tokens of the model that the rows are for: limits, and splitting at turn pairs.

`zephyrctl.asking.lengths.open_counter` opens the counter of a model.
"""

from __future__ import annotations

from typing import Protocol

from zephyrctl.curation.base import Dialogue, Dropped
from zephyrctl.records import Message

VERSION = 1


class TokenCounter(Protocol):
    """Counts the tokens of a dialogue as it is rendered for training."""

    @property
    def label(self) -> str:
        """The model whose tokenizer it counts with."""
        ...

    @property
    def digest(self) -> str:
        """What stands for that tokenizer and its template in a step key."""
        ...

    def __call__(self, dialogue: Dialogue) -> int:
        """Tokens of the whole dialogue, the marks between turns included."""
        ...


class TokenLimit:
    """The filters `max-tokens=N` and `min-tokens=N`: dialogues of more, or fewer, tokens are dropped."""

    learns = False

    def __init__(self, kind: str, limit: int, count: TokenCounter) -> None:
        self.name = f"{kind}={limit}"
        self._most = kind == "max-tokens"
        self._limit = limit
        self._count = count

    def learn(self, dialogue: Dialogue) -> None:
        """Nothing is learned."""

    def apply(self, dialogue: Dialogue) -> list[list[Message]] | Dropped:
        """The dialogue, or Dropped with its length."""
        tokens = self._count(dialogue)
        if tokens > self._limit if self._most else tokens < self._limit:
            return Dropped(
                "too_long" if self._most else "too_short", f"{tokens} tokens ({self._count.label})"
            )
        return [list(dialogue)]


class SplitLong:
    """The filter `split-long=N`: a longer dialogue becomes several of at most N tokens, cut between an answer and the
    next user turn, as UltraChat's own script does; a system message begins each part. A part of one turn pair that is
    longer by itself is left out; where that is all there is, the dialogue is dropped."""

    learns = False

    def __init__(self, limit: int, count: TokenCounter) -> None:
        self.name = f"split-long={limit}"
        self.left_out = 0
        """Turn pairs that are too long by themselves, of dialogues of which other parts are kept."""
        self._limit = limit
        self._count = count

    def learn(self, dialogue: Dialogue) -> None:
        """Nothing is learned."""

    def apply(self, dialogue: Dialogue) -> list[list[Message]] | Dropped:
        """The dialogue, its parts in order, or Dropped when no part is short enough."""
        whole = list(dialogue)
        if self._count(whole) <= self._limit:
            return [whole]
        system, pairs = _turn_pairs(whole)
        parts: list[list[Message]] = []
        current: list[Message] = []
        for pair in pairs:
            if current and self._count([*system, *current, *pair]) <= self._limit:
                current = [*current, *pair]
                continue
            if current:
                parts.append([*system, *current])
            current = pair if self._count([*system, *pair]) <= self._limit else []
        if current:
            parts.append([*system, *current])
        if not parts:
            return Dropped(
                "too_long", f"every turn pair has more than {self._limit} tokens ({self._count.label})"
            )
        self.left_out += len(pairs) - sum(len(_turn_pairs(part)[1]) for part in parts)
        return parts


def _turn_pairs(dialogue: list[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The leading system messages, and the rest cut before each user turn that follows an answer."""
    begin = next((n for n, m in enumerate(dialogue) if m.role != "system"), len(dialogue))
    pairs: list[list[Message]] = []
    for message in dialogue[begin:]:
        if not pairs or (message.role == "user" and pairs[-1][-1].role == "assistant"):
            pairs.append([])
        pairs[-1].append(message)
    # a user turn that nothing answers is nothing to learn from
    return dialogue[:begin], [pair for pair in pairs if any(m.role == "assistant" for m in pair)]
