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
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs import delivered, job, rows_trained_on, train

from engine_shop import engine_settings
from zephyrctl.errors import Preempted
from zephyrctl.events import Event, Metric, Progress
from zephyrctl.training import checkpoint
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.job import Job

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
    with rows_trained_on(monkeypatch) as seen:
        for stops in range(1, whole.plan.steps):
            with pytest.raises(Preempted) as caught:
                train(replace(one, emit=signalled([signal.SIGTERM, signal.SIGUSR1][stops % 2])))
            assert caught.value.exit_code == 75
            assert checkpoint.newest(one.scratch).step == stops
        train(one)
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


SHARED = [
    ("ddp", "sft-lora"),
    ("ddp", "dpo"),
    ("zero2", "sft"),
    ("zero3", "sft"),
    ("zero3", "dpo"),
    ("fsdp2", "sft"),
]


@in_main
@pytest.mark.slow
@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize(("engine", "kind"), SHARED)
def test_two_processes_stopped_in_the_middle_end_as_undisturbed(
    engine: str,
    kind: str,
    tiny: Path,
    tmp_path: Path,
    pairs_of_reference: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine_settings(engine, monkeypatch)
    choice = EngineChoice(name=engine, processes=2)  # type: ignore[arg-type]
    whole = replace(made(kind, tiny, tmp_path / "whole", pairs_of_reference), choice=choice)
    train(whole)
    one = replace(made(kind, tiny, tmp_path / "cut", pairs_of_reference), choice=choice)
    with pytest.raises(Preempted) as caught:
        train(replace(one, emit=signalled(signal.SIGTERM, at=3)))
    assert caught.value.exit_code == 75
    step = checkpoint.newest(one.scratch).step
    assert 3 <= step < 8
    assert f"step {step} of 8 is saved" in caught.value.message
    train(one)
    assert delivered(one) == delivered(whole)


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from dataclasses import replace
from jobs import job, train
from zephyrctl.errors import ZephyrError
task, model, scratch, reference = sys.argv[1], *map(Path, sys.argv[2:])
one = job(task, model, scratch, epochs=6, save_steps=2)
one = replace(one, reference=reference if task == "dpo" else None)
try:
    train(replace(one, emit=lambda event: print("begun", flush=True)))
except ZephyrError as error:
    sys.exit(error.exit_code)
"""


def started(task: str, tiny: Path, scratch: Path, reference: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, task, str(tiny), str(scratch), str(reference)]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    assert run.stdout is not None
    assert run.stdout.readline() == "begun\n"
    return run


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_signals_at_random_moments_leave_no_trace(
    task: str, tiny: Path, tmp_path: Path, pairs_of_reference: Path
) -> None:
    run = started(task, tiny, tmp_path / "whole", pairs_of_reference)
    begun = time.monotonic()
    run.communicate(timeout=300)
    length = time.monotonic() - begun
    numbers = random.Random(task)
    codes = []
    while 0 not in codes:
        run = started(task, tiny, tmp_path / "cut", pairs_of_reference)
        time.sleep(numbers.uniform(0, length / 3))
        if len(codes) < 5:
            run.send_signal([signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1][len(codes) % 3])
        run.communicate(timeout=300)
        codes.append(run.returncode)
    print(f"{task}: ended with {codes}")
    assert set(codes) <= {0, 75, -signal.SIGTERM, -signal.SIGUSR1, -signal.SIGKILL}
    ended = [delivered(job(task, tiny, tmp_path / name)) for name in ("whole", "cut")]
    assert ended[0] == ended[1]
