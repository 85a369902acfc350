"""The sandbox's teacher plays the user: what `gen-sft --method ultrachat` asks, read from the text alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence


def respond(messages: Sequence[Mapping[str, str]], rng: random.Random) -> str | None:
    """The reply to a request for subtopics, questions or the user's next turn; None for any other text."""
    return None
