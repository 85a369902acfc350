"""What a filter is: a dialogue or a prompt goes in; it, parts of it, or the reason why it is dropped comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from zephyrctl.records import Message

Dialogue = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why a dialogue is not kept: `reason` is counted, `detail` says what was found."""

    reason: str
    detail: str


class Filter(Protocol):
    """One step of a pipeline. Filters that `learn` see the whole corpus before the first dialogue is filtered."""

    name: str
    """As asked for, with its setting: `near-duplicates=0.8`."""
    learns: bool

    def learn(self, dialogue: Dialogue) -> None:
        """Takes one dialogue of the corpus into account."""
        ...

    def apply(self, dialogue: Dialogue) -> list[list[Message]] | Dropped:
        """The dialogue, changed or cut into parts, or why it is dropped."""
        ...
