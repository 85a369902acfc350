"""Lengths in tokens of the model that the rows are for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from zephyrctl.curation.base import Dialogue

if TYPE_CHECKING:
    from zephyrctl.artifacts.store import Store


class TokenCounter(Protocol):
    """Counts the tokens of a dialogue: those of its texts and of the marks between turns."""

    label: str
    """The tokenizer it counts with."""
    digest: str
    """What stands for that tokenizer in a step key."""

    def __call__(self, dialogue: Dialogue) -> int:
        """Tokens of the whole dialogue."""
        ...


def open_counter(store: Store, text: str) -> TokenCounter:
    """The counter for the model that `text` names: a folder, an artifact, a Hub name, or `sandbox`.

    Raises RefNotFound, UsageError for a model without a tokenizer.
    """
    raise NotImplementedError
