"""What the fault tests share: a small step, and system calls that fail or die at a chosen moment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from zephyrctl.artifacts import durable

sys.path.insert(0, str(Path(__file__).parent))  # fault_job.py lies beside these tests
from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.config import StageConfig
from zephyrctl.records import Message, PreferenceRow, SftRow

NAMES = ("open_new", "write", "fsync", "chmod", "mkdir", "rename", "link", "symlink", "unlink", "rmdir")


class Killed(BaseException):
    """The process is gone: nothing it does afterwards reaches the disk."""


class Quick(durable.Calls):
    """Syncs nothing: these tests kill and refuse but never cut the power."""

    def fsync(self, handle: int) -> None:
        pass


class Faulty(Quick):
    """Counts the calls that change the disk and breaks the chosen one: with an error, or by dying.

    `code` None = die. After a death every later call dies too: a killed process cleans nothing up.
    `tear` writes half of the data first, as a full disk does.
    """

    def __init__(
        self, at: int = -1, *, code: int | None = None, sticky: bool = False, tear: bool = False
    ) -> None:
        self.at = at
        self.code = code
        self.sticky = sticky
        self.tear = tear
        self.seen: list[str] = []
        self.dead = False
        self.Killed = Killed

    def __getattribute__(self, name: str) -> Any:
        plain = super().__getattribute__(name)
        if name not in NAMES:
            return plain

        def call(*args: Any) -> Any:
            if self.dead:
                raise Killed
            index = len(self.seen)
            self.seen.append(name)
            if index == self.at or (self.sticky and index > self.at >= 0):
                if self.tear and name == "write":
                    os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
                if self.code is None:
                    self.dead = True
                    raise Killed
                raise OSError(
                    self.code, os.strerror(self.code), args[0] if isinstance(args[0], str) else None
                )
            return plain(*args)

        return call


class TrialConfig(StageConfig):
    """A stage that exists for these tests."""

    stage: ClassVar[str] = "trial"
    knob: int = 1


def message(role: str, text: str) -> list[Message]:
    return [Message.model_validate({"role": role, "content": text})]


def run_step(store: Store, kind: str, *, again: bool = False, knob: int = 1) -> StepResult:
    """A step of kind prefs (with a side output and rejects) or model, as a stage runs it."""
    name = "dpo-e1" if kind == "model" else "prefs"
    step = Step(
        Work(store, again=again), TrialConfig(knob=knob), name=name, kind=kind, inputs=[], world="real"
    )
    if (done := step.done()) is not None:
        return done
    with step.open() as staging:
        if kind == "model":
            staging.write_text("config.json", "{}")
            staging.write_text("model.safetensors", "weights")
            with staging.side("dpo-e1.epoch0", "model") as side:
                side.write_text("config.json", "{}")
            return step.result(staging.commit())
        with staging.side("prefs-best", "sft") as side:
            said = message("user", "q") + message("assistant", "a")
            side.write_rows("train", [SftRow(row_id="1", prompt_id="1", messages=said)])
        asked, good, bad = message("user", "q"), message("assistant", "a"), message("assistant", "b")
        staging.write_rows("train", [PreferenceRow(prompt_id="1", prompt=asked, chosen=good, rejected=bad)])
        staging.write_rejects([{"where": "x", "reason": "tie", "detail": "", "row": {}}])
        return step.result(staging.commit())


@pytest.fixture
def run() -> Callable[..., StepResult]:
    """`run(store, kind)`: one whole step."""
    return run_step


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Faulty]:
    """`faulty(at, code=…)`: breaks the `at`-th call from now on; `faulty()` only counts."""

    def install(at: int = -1, **how: Any) -> Faulty:
        calls = Faulty(at, **how)
        monkeypatch.setattr(durable, "calls", calls)
        return calls

    return install


@pytest.fixture
def mend(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The disk works again."""
    return lambda: monkeypatch.setattr(durable, "calls", Quick())


@pytest.fixture
def whole() -> Callable[[Path], list[Artifact]]:
    """All versions that a fresh look at the store shows; fails when one of them is not whole."""

    def look(root: Path) -> list[Artifact]:
        store = Store.open(root)
        found = [artifact for name in store.names() for artifact in store.versions(name)]
        for artifact in found:
            assert artifact.problems() == []
        return found

    return look
