"""Prompts against the evaluation suites the user has: what is found before money is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.asking.prompts import Seed
from zephyrctl.events import Emit
from zephyrctl.project import Project
from zephyrctl.records import Message


@dataclass(frozen=True, slots=True)
class Hit:
    """An item of a suite that a prompt overlaps with. `how`: exact, normalised or 13-gram."""

    suite: str
    item: str
    how: str
    overlap: str


class Decontaminator:
    """The suites, ready to be compared with; counts what it was shown."""

    def inputs(self) -> list[InputRef]:
        """The suites as inputs of the step (role `suite`)."""
        raise NotImplementedError

    def hit(self, messages: Sequence[Message]) -> Hit | None:
        """The first overlap of what the user and the system say with any item; counts it."""
        raise NotImplementedError

    def sift(self, seeds: Sequence[Seed], *, drop: bool) -> tuple[list[Seed], list[dict[str, str]]]:
        """The prompts to go on with, and those dropped as rejects (reason `contaminated`)."""
        raise NotImplementedError

    def record(self) -> dict[str, Any]:
        """What was compared and found, for the manifest (`extra["decontamination"]`)."""
        raise NotImplementedError


def open_decontaminator(named: Sequence[str], project: Project, emit: Emit) -> Decontaminator:
    """The suites that `named` paths hold, else those in the project's `suites` folder, else none, which is said.

    Raises RefNotFound for a path that is not there, UsageError for a file that is no suite.
    """
    raise NotImplementedError
