"""A pool whose texts say who wrote them and what was asked, and a judge that goes by it: for the tests of traps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.events import Recorder, Warning_
from zephyrctl.project import Project
from zephyrctl.quote import read_blocks
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.testing.answers import conversation
from zephyrctl.testing.teacher import LoopbackTeacher

POOL = ["box:pool-a", "box:pool-b", "box:pool-c"]
GRADES = {"pool-a": 5, "pool-b": 3, "pool-c": 2}
"""What the judge below gives each of them, in every aspect; overall twice as much."""
ENDINGS = {"pool-a": "of cars", "pool-b": "of class </s", "pool-c": "of > glass/s"}
PRICE = {"in": 100, "out": 400}


def made(result: StepResult) -> Artifact:
    """What a stage made."""
    assert result.artifact is not None
    return result.artifact


def rows_of(artifact: Artifact, kind: type[Any]) -> list[Any]:
    """The rows of an artifact, in stored order."""
    return [row for _, _, row in artifact.rows() if isinstance(row, kind)]


def prompts_file(path: Path, prompts: list[str]) -> str:
    """A file of prompts."""
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts), encoding="utf-8")
    return str(path)


def work_at(folder: Path, teacher: LoopbackTeacher | None = None) -> Work:
    """A store in `folder`; the endpoint `box` is the teacher."""
    box = {"base_url": teacher.openai_url, "price": PRICE} if teacher else None
    project = Project.model_validate({"endpoints": {"box": box} if box else {}})
    return Work(Store.open(folder / "artifacts"), Recorder(), project=project)


def warnings(work: Work) -> list[str]:
    """What was warned of so far."""
    told = work.emit.outside  # type: ignore[attr-defined]
    return [event.text for event in told.events if isinstance(event, Warning_)]


def pool_or_judge(body: Mapping[str, Any]) -> str:
    """A pool whose texts say who wrote them and what was asked; a judge that goes by who wrote them."""
    asked, model = conversation(body)[-1]["content"], str(body["model"])
    if model in GRADES:
        return f"{model} on <{asked}> {ENDINGS[model]}"
    blocks = read_blocks(asked)
    if "ANSWER" in blocks:
        return f"So.\n\nOverall score: {2 * grade_of(blocks['ANSWER'])}"
    texts = [(name, text) for name, text in blocks.items() if name.startswith("TEXT")]
    return "\n\n".join(
        f"{n.capitalize()}\nTypes: none\nRating: {grade_of(t)}\nRationale: so" for n, t in texts
    )


def grade_of(text: str) -> int:
    """What the judge gives a text."""
    return 3 if "tied" in text else GRADES[text.split()[0]]


def on_prompt(number: int, mode: str, model: str = "") -> Callable[[int, Mapping[str, Any]], str]:
    """A script that treats calls about one prompt in a special way: those of one model, or of the whole pool."""

    def script(times: int, body: Mapping[str, Any]) -> str:
        hit = conversation(body)[-1]["content"] == f"prompt {number}"
        return mode if hit and str(body["model"]).startswith(model or "pool") else "ok"

    return script


def prefs(prompts: str, **settings: Any) -> GenPrefsConfig:
    """`gen-prefs` with the pool and the judge at `box`."""
    body = {"teacher": "box:judge", "pool": POOL, "prompts": prompts, "max_usd": 1000, "max_failures": 0.9}
    return GenPrefsConfig.model_validate(body | settings)
