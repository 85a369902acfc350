"""A store in an empty folder, and ways to fill it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import Step, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.config import StageConfig
from zephyrctl.events import Emit, silent
from zephyrctl.records import Message, PreferenceRow, PromptRow, Record, SftRow, prompt_id

Make = Callable[..., Artifact]


class TrialConfig(StageConfig):
    """A stage that exists for these tests."""

    stage: ClassVar[str] = "trial"
    knob: int = 1


def pair(number: int) -> PreferenceRow:
    """A preference row that differs from all others."""
    asked = [Message(role="user", content=f"question {number}")]
    return PreferenceRow(
        prompt_id=prompt_id(asked),
        prompt=asked,
        chosen=[Message(role="assistant", content=f"good {number}")],
        rejected=[Message(role="assistant", content=f"bad {number}")],
        score_chosen=8.5 if number % 2 else None,
    )


def dialogue(number: int) -> SftRow:
    """A dialogue that differs from all others."""
    asked = [Message(role="user", content=f"question {number}")]
    said = [*asked, Message(role="assistant", content=f"answer {number}")]
    return SftRow(row_id=str(number), prompt_id=prompt_id(asked), messages=said)


def question(number: int) -> PromptRow:
    """A prompt that differs from all others."""
    asked = [Message(role="user", content=f"question {number}")]
    return PromptRow(prompt_id=prompt_id(asked), prompt=asked)


ROWS: dict[str, Callable[[int], Record]] = {"prefs": pair, "sft": dialogue, "prompts": question}


@pytest.fixture
def rows_of() -> Callable[[str, int], list[Record]]:
    """`rows_of(kind, count)`: rows that differ from one another."""
    return lambda kind, count: [ROWS[kind](n) for n in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that does not exist on disk yet."""
    return Store.open(tmp_path / "artifacts")


@pytest.fixture
def make_step(store: Store) -> Callable[..., Step]:
    """`make_step(name, kind, knob=, inputs=, again=, world=, emit=)`: a step of the trial stage."""

    def build(
        name: str = "prefs",
        kind: str = "prefs",
        *,
        knob: int = 1,
        inputs: Sequence[InputRef] = (),
        world: Any = "real",
        emit: Emit = silent,
        again: bool = False,
        **settings: Any,
    ) -> Step:
        work = Work(store, emit, again=again)
        return Step(
            work, TrialConfig(knob=knob, **settings), name=name, kind=kind, inputs=inputs, world=world
        )

    return build


@pytest.fixture
def make(make_step: Callable[..., Step]) -> Make:
    """`make(name, kind, rows=, test=, rejects=, files=, …)`: a committed artifact."""

    def build(
        name: str = "prefs",
        kind: str = "prefs",
        *,
        rows: int = 4,
        test: int = 2,
        first: int = 0,
        rejects: Sequence[dict[str, Any]] = (),
        files: dict[str, str] | None = None,
        **step: Any,
    ) -> Artifact:
        with make_step(name, kind, **step).open() as staging:
            if kind in ROWS:
                staging.write_rows("train", [ROWS[kind](first + n) for n in range(rows)])
                staging.write_rows("test", [ROWS[kind](first + rows + n) for n in range(test)])
            for relative, text in (files or {}).items():
                staging.write_text(relative, text)
            staging.write_rejects(rejects)
            return staging.commit()

    return build
