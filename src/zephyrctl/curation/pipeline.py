"""Filters one after the other, counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.curation.base import Dialogue, Dropped, Filter
from zephyrctl.curation.lengths import TokenCounter
from zephyrctl.records import Message


class Pipeline:
    """Filters in the order asked for; an empty one passes everything."""

    def __init__(self, filters: Sequence[Filter]) -> None:
        self._filters = list(filters)

    @property
    def learns(self) -> bool:
        """Whether a filter must see the whole corpus before the first dialogue is filtered."""
        return any(one.learns for one in self._filters)

    def learn(self, dialogues: Iterable[Dialogue]) -> None:
        """Shows the corpus to the filters that learn."""

    def apply(self, dialogue: Dialogue) -> list[list[Message]] | Dropped:
        """What becomes of a dialogue after all filters."""
        return [list(dialogue)]

    def counts(self) -> dict[str, Any]:
        """For each filter: seen, changed, split, dropped by reason."""
        return {}

    def inputs(self) -> list[InputRef]:
        """What enters the step key: word lists and the versions of the algorithms."""
        return []


def make_pipeline(specs: Sequence[str], *, count: TokenCounter | None = None, place: str = "") -> Pipeline:
    """The filters that `specs` name; `count` counts tokens, `place` says in messages where they were asked for.

    Raises UsageError for an unknown filter or a setting that cannot be read, MissingExtra for a package.
    """
    return Pipeline([])
