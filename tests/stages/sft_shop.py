"""What the tests of gen-sft's methods share: a place to work at, and what an artifact of dialogues says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.events import Recorder
from zephyrctl.project import Project
from zephyrctl.records import SftRow
from zephyrctl.testing.teacher import LoopbackTeacher


def work_at(folder: Path, teacher: LoopbackTeacher | None = None, **more: Any) -> Work:
    endpoints = {}
    if teacher is not None:
        endpoints = {"box": {"base_url": teacher.openai_url, "price": {"in": 0.01, "out": 0.01}}}
    return Work(
        Store.open(folder / "artifacts"),
        Recorder(),
        project=Project.model_validate({"endpoints": endpoints}),
        **more,
    )


def made(result: StepResult) -> Artifact:
    assert result.artifact is not None
    return result.artifact


def rows_of(artifact: Artifact) -> list[SftRow]:
    return [row for _, _, row in artifact.rows() if isinstance(row, SftRow)]


def calls(artifact: Artifact) -> int:
    return sum(t["calls"] for t in artifact.manifest.teachers)


def extra(artifact: Artifact, name: str) -> Any:
    return (artifact.manifest.model_extra or {})[name]
