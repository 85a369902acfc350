"""The sandbox's teacher makes up tasks: what `gen-sft --method self-instruct` asks, read from the text alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence


def respond(messages: Sequence[Mapping[str, str]], error_rate: float, rng: random.Random) -> str | None:
    """The reply to a request for tasks, their kind or their instances; None for any other text."""
    return None
