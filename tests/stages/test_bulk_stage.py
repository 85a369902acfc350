"""Stages in batch mode and without a network: whole waves at once, one probe, a pilot at online speed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import TryAgain
from zephyrctl.events import Recorder
from zephyrctl.project import Project
from zephyrctl.providers.calling import caller as calling
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.run import run
from zephyrctl.testing.teacher import LoopbackTeacher

ROWS = 700


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackTeacher]:
    """A teacher with a batch API, asked without waiting between polls."""

    async def at_once(seconds: float) -> None:
        await asyncio.sleep(0.001)

    build = calling.Switchboard
    monkeypatch.setattr(
        calling, "Switchboard", lambda *args, **more: build(*args, **{**more, "sleep": at_once})
    )
    with LoopbackTeacher() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        yield server


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Sort these words: pear{i} apple{i} fig{i}"} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(prompts: str, **settings: Any) -> GenSftConfig:
    base: dict[str, Any] = {
        "teacher": "gpt-4o-mini",
        "prompts": prompts,
        "rounds": 0,
        "max_tokens": 60,
        "max_usd": 100,
        "price": "in=0.15,out=0.6",
    }
    return GenSftConfig.model_validate({**base, **settings})


def work(tmp_path: Path, **project: Any) -> Work:
    return Work(Store.open(tmp_path / "artifacts"), Recorder(), project=Project.model_validate(project))


def test_a_wave_goes_into_one_batch(teacher: LoopbackTeacher, prompts: str, tmp_path: Path) -> None:
    made = run(config(prompts, mode="batch"), work(tmp_path)).artifact
    assert made is not None
    assert made.manifest.counts["kept"] == ROWS
    assert (len(teacher.batches), teacher.requests, teacher.billed_calls) == (1, 0, ROWS)


def test_auto_tries_a_few_rows_once(teacher: LoopbackTeacher, prompts: str, tmp_path: Path) -> None:
    made = run(config(prompts, mode="auto", rounds=1), work(tmp_path)).artifact
    assert made is not None
    assert teacher.requests == 20
    assert len(teacher.batches) == 3  # answers, refinements, answers to what was refined
    assert teacher.billed_calls <= 3 * ROWS


def test_a_pilot_does_not_wait_for_batches(teacher: LoopbackTeacher, prompts: str, tmp_path: Path) -> None:
    online = run(config(prompts, pilot=10), work(tmp_path / "a")).plan["forecast"]["usd"]["total"]
    batch = run(config(prompts, pilot=10, mode="batch"), work(tmp_path / "b")).plan["forecast"]["usd"][
        "total"
    ]
    assert teacher.batches == []
    assert batch == pytest.approx(online / 2, rel=0.02)


def test_everything_is_written_down_for_a_model_out_of_reach(prompts: str, tmp_path: Path) -> None:
    far = work(tmp_path, endpoints={"far": {"offline": True, "price": {"in": 0, "out": 0}}})
    with pytest.raises(TryAgain, match=f"{ROWS} for qwen") as caught:
        run(config(prompts, teacher="far:qwen"), far)
    assert "ledger batch export" in str(caught.value.hint)
