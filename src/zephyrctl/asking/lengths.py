"""Counting tokens as the target model does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.artifacts.store import Store
from zephyrctl.chat.render import render_text, template_digest
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.config import digest_of
from zephyrctl.records import Message
from zephyrctl.training.locate import locate_model


@dataclass(frozen=True)
class RenderedLength:
    """Counts the tokens of a dialogue rendered with a model's own template, as training renders it."""

    label: str
    digest: str
    tokenizer: Any = field(repr=False)

    def __call__(self, dialogue: Sequence[Message]) -> int:
        """Tokens of the whole dialogue, marks between turns included."""
        text = render_text(self.tokenizer, dialogue)
        # not verbose: that a dialogue is longer than the model reads is what is to be found out
        return len(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))


def open_counter(store: Store, model: str) -> RenderedLength:
    """The counter of a model that lies in a folder, in the store or in the Hub's cache, or of `sandbox`.

    Raises RefNotFound, TryAgain, MissingExtra (transformers), EnvironmentFault for a model without a usable tokenizer.
    """
    found = locate_model(store, model)
    tokenizer = load_tokenizer(found.path)
    return RenderedLength(found.ref, digest_of([found.digest, template_digest(tokenizer)]), tokenizer)
