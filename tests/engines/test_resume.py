"""A run that is stopped, however and whenever, and started again ends as the one that nobody disturbed: the same
weights, metrics and rows, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import Preempted
from zephyrctl.events import Event, Metric, Progress, Recorder
from zephyrctl.training import checkpoint
from zephyrctl.training.job import Job

from engine_shop import Shop, engine_settings, new_shop
from jobs import delivered, job, rows_trained_on, train

in_main = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread alone"
)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "dpo": ("dpo", {}),
    "sft-lora": ("sft", {"lora": True, "lora_dropout": 0.3}),
    "dpo-lora": ("dpo", {"lora": True, "lora_dropout": 0.3}),
    "sft-epochs": ("sft", {"keep_epochs": True, "optimizer": "rmsprop", "scheduler": "constant"}),
}


def signalled(number: int, *, at: int | None = None) -> Any:
    """An `emit` that sends this process one signal: once training has begun, or once the step `at` is recorded."""
    waiting = [number]

    def emit(event: Event) -> None:
        due = isinstance(event, Progress) if at is None else isinstance(event, Metric) and event.step == at
        if due and waiting:
            os.kill(os.getpid(), waiting.pop())

    return emit


@pytest.fixture(scope="module")
def pairs_of_reference(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reference says, as a first run of DPO leaves it."""
    first = job("dpo", tiny, tmp_path_factory.mktemp("first"), max_steps=1, warmup=0)
    train(first)
    return first.scratch / "kept" / "reference"


def made(kind: str, tiny: Path, scratch: Path, reference: Path, **changes: Any) -> Job:
    task, settings = KINDS[kind]
    return replace(
        job(task, tiny, scratch, **settings | changes), reference=reference if task == "dpo" else None
    )


@in_main
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_every_step_is_the_same_as_never(
    kind: str, tiny: Path, tmp_path: Path, pairs_of_reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(kind, tiny, tmp_path / "whole", pairs_of_reference)
    with rows_trained_on(monkeypatch) as undisturbed:
        train(whole)
    one = made(kind, tiny, tmp_path / "cut", pairs_of_reference)
    stops = 0
    with rows_trained_on(monkeypatch) as seen:
        while True:
            try:
                train(replace(one, emit=signalled([signal.SIGTERM, signal.SIGUSR1][stops % 2])))
                break
            except Preempted as error:
                stops += 1
                assert error.exit_code == 75
                assert checkpoint.newest(one.scratch).step == stops
    assert stops == whole.plan.steps - 1
    assert seen == undisturbed
    for step, batch in enumerate(b for epoch in (0, 1) for b in whole.plan.batches(epoch)):
        assert sorted(batch) == sorted(row for at, rows in seen if at == step for row in rows)
    assert delivered(one) == delivered(whole)


@pytest.mark.parametrize("kind", ["sft-lora", "dpo"])
def test_every_save_point_leads_to_the_same_end(
    kind: str, tiny: Path, tmp_path: Path, pairs_of_reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between two steps: the checkpoint of each step in turn is the newest that there is."""
    kept = tmp_path / "kept"
    rotate = checkpoint.rotate

    def copied(scratch: Path, keep: int = 2, *, saved: int | None = None) -> None:
        if scratch == tmp_path / "whole":
            shutil.copytree(scratch / f"checkpoint-{saved}", kept / str(saved) / f"checkpoint-{saved}")
        rotate(scratch, keep, saved=saved)

    monkeypatch.setattr(checkpoint, "rotate", copied)
    whole = made(kind, tiny, tmp_path / "whole", pairs_of_reference, save_steps=1)
    with rows_trained_on(monkeypatch) as undisturbed:
        train(whole)
    points = sorted(int(p.name) for p in kept.iterdir())
    assert points == list(range(1, whole.plan.steps))
    for point in points:
        one = made(kind, tiny, kept / str(point), pairs_of_reference)
        with rows_trained_on(monkeypatch) as seen:
            train(one)
        assert seen == [(at, rows) for at, rows in undisturbed if at >= point]
        assert delivered(one) == delivered(whole)
