"""The seed tasks that ship with the package, for a start from an empty folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SeedTask:
    """One task of our own wording: an instruction, at times with an input, its answer, and further user turns."""

    id: str
    kind: str
    instruction: str
    input: str
    output: str
    is_classification: bool
    follow_ups: tuple[str, ...] = ()


def seed_tasks() -> list[SeedTask]:
    """All shipped seed tasks, in their order."""
    raise NotImplementedError
