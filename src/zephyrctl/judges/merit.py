"""What a text is worth, where that can be computed: in the sandbox, whose answers are known exactly."""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.judges.sample import Merit
from zephyrctl.records import Message
from zephyrctl.sandbox import world


def merit_of(judge: str) -> Merit | None:
    """What computes the merit of the texts that `judge` (its label) rates: the sandbox's judges see exercises of the
    sandbox. None for all others: the real world has no key to look answers up in."""
    return sandbox_merit if judge.startswith("sandbox:") else None


def sandbox_merit(prompt: Sequence[Message], text: str) -> float | None:
    """How near an answer is to right, from 0 to 1, however it is worded; None for what is no exercise of the
    sandbox."""
    return world.closeness([message.content for message in prompt if message.role == "user"], text)
