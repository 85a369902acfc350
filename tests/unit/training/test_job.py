"""A run as data: what is written for other processes is what they read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.events import silent
from zephyrctl.losses import LossSpec
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.job import READY, Job, keep_nothing
from zephyrctl.training.packing import PackedRows, pack_rows
from zephyrctl.training.plan import Plan
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.token_rows import PairRows, PairTokens, SftRows, SftTokens

PLAN = Plan(5, 2, 1, 9, 3, "cosine", 1e-3, 42, longest=4)
DIALOGUES = SftRows(SftTokens([n, n + 1, n + 2], [-100, n + 1, -100]) for n in range(5))
PAIRS = PairRows(PairTokens([n], [n + 1, 7], [n + 2]) for n in range(5))


def sft(scratch: Path, **changes: Any) -> Job:
    config = TrainingConfig(lr=3e-4, chat_template="zephyr", data=["a=0.5"], report_to=["trackio"])
    return Job("sft", config, scratch / "init", DIALOGUES, SftRows(), PLAN, scratch, **changes)


def dpo(scratch: Path, **changes: Any) -> Job:
    settings: dict[str, Any] = {
        "loss": LossSpec(("sigmoid", "ipo"), (1.0, 0.5), beta=0.2), "reference": scratch / "reference", "verify_ref": 8,
        "choice": EngineChoice("zero3", 4, 2, "cuda", True, "flash_attention_2", True, "so"),
        "base": ("sft@v1", "sha256:0"), "name": "dpo@v3", "mark": "first",
    }  # fmt: skip
    config = TrainingConfig(dtype="fp32", seed=7)
    return Job("dpo", config, scratch / "init", PAIRS, PAIRS, PLAN, scratch, **{**settings, **changes})


def through(job: Job) -> Job:
    """The job as another process has it."""
    job.save(job.scratch / "job")
    return Job.load(job.scratch / "job", emit=silent, deliver=keep_nothing)


@pytest.mark.parametrize("make", [sft, dpo])
def test_a_job_is_what_was_saved(make: Any, tmp_path: Path) -> None:
    job = make(tmp_path)
    found = through(job)
    assert found == job  # rows compare by content, plan, choice, loss and config by value
    assert type(found.train) is type(job.train)
    assert found.train.lengths() == job.train.lengths()


def test_every_field_goes_through(tmp_path: Path) -> None:
    # a field that has its default on both sides of the test would not show that it is lost
    plain = Job("sft", TrainingConfig(), Path(), SftRows(), SftRows(), PLAN, Path())
    set_ = dpo(tmp_path, runs=tmp_path / "runs", stop_at=4)
    kept = {"emit", "deliver", "plan"}
    same = {name for name in Job.__dataclass_fields__ if getattr(plain, name) == getattr(set_, name)}
    assert same <= kept, f"give these another value here: {same - kept}"
    assert through(set_) == set_


def test_packs_go_through_with_their_plan(tmp_path: Path) -> None:
    packed = pack_rows(DIALOGUES, 7, seed=3)
    found = through(replace(sft(tmp_path), train=packed)).train
    assert isinstance(found, PackedRows)
    assert found.plan == packed.plan
    assert list(found) == list(packed)
    assert not isinstance(through(sft(tmp_path)).train, PackedRows)  # and leave nothing behind for the next


def test_the_job_is_ready_only_once_all_of_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = sft(tmp_path)
    job.save(tmp_path / "job")
    assert (tmp_path / "job" / READY).is_file()

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(SftRows, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        job.save(tmp_path / "job")
    assert not (tmp_path / "job" / READY).exists()


def test_a_job_is_json_and_arrays_without_code(tmp_path: Path) -> None:
    dpo(tmp_path).save(tmp_path / "job")
    files = [p for p in (tmp_path / "job").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".npy"}
    body = json.loads((tmp_path / "job" / READY).read_text(encoding="utf-8"))
    assert body["config"]["seed"] == 7
