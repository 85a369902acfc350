"""Training jobs without a stage around them: a tiny model, rows of made-up tokens, a record of the rows trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.losses import LossSpec
from zephyrctl.training import trainers
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.engines import write_deepspeed_settings
from zephyrctl.training.job import Job
from zephyrctl.training.loop import run
from zephyrctl.training.plan import make_plan
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.supervise import Launch, free_port, run_ranks
from zephyrctl.training.token_rows import PairRows, PairTokens, SftRows, SftTokens

VOCABULARY = 200
ROWS = 29


def ids(numbers: random.Random, most: int) -> list[int]:
    return [numbers.randrange(10, VOCABULARY) for _ in range(numbers.randint(1, most))]


def rows(task: str, count: int = ROWS) -> Any:
    """Rows of random tokens, the same ones every time."""
    numbers = random.Random(task)
    if task == "dpo":
        return PairRows(PairTokens(ids(numbers, 9), ids(numbers, 7), ids(numbers, 7)) for _ in range(count))
    made = SftRows()
    for _ in range(count):
        prompt, answer = ids(numbers, 9), ids(numbers, 7)
        made.append(SftTokens(prompt + answer, [-100] * len(prompt) + answer))
    return made


def job(task: str, model: Path, scratch: Path, choice: EngineChoice | None = None, **changes: Any) -> Job:
    """A run of eight steps in two epochs."""
    settings: dict[str, Any] = {"lr": 1e-3, "batch_size": 8, "dtype": "fp32", "epochs": 2, "micro_batch": 2}
    config = TrainingConfig(**settings | changes)
    plan = make_plan(
        ROWS, batch=config.batch_size, micro=config.rows_per_pass(), epochs=config.epochs, max_steps=config.max_steps,
        warmup=config.warmup, scheduler=config.scheduler, lr=config.lr, seed=config.seed,
    )  # fmt: skip
    return Job(
        task, config, model, rows(task), rows(task, 4), plan, scratch,
        choice or EngineChoice(), loss=LossSpec() if task == "dpo" else None,
    )  # fmt: skip


def train(one: Job) -> None:
    """Runs a job, here or in processes of its own."""
    if one.choice.processes == 1:
        run(one)
        return
    folder = one.scratch / "job"
    one.save(folder)
    write_deepspeed_settings(
        folder, one.choice, dtype=one.config.dtype, max_grad_norm=one.config.max_grad_norm
    )
    run_ranks(Launch(one.choice, folder, port=free_port()), one.emit, one.deliver)


def delivered(one: Job) -> dict[str, bytes]:
    """The files of the finished model but those that hold times."""
    folder = one.scratch / "kept" / "final"
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found.pop("timing.jsonl")
    return found


@contextmanager
def rows_trained_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """The steps done before and the rows of every forward pass that bore a loss, in their order."""
    seen: list[tuple[int, tuple[int, ...]]] = []
    fetch, loss = trainers.Feed.__getitem__, trainers.Planned.compute_loss

    def fetched(self: Any, one: Any) -> dict[str, Any]:
        return fetch(self, one) | {"rows": one.rows}

    def computed(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((self.state.global_step, inputs["rows"]))
        return loss(self, model, inputs, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainers.Feed, "__getitem__", fetched)
        patch.setattr(trainers.Planned, "compute_loss", computed)
        yield seen
