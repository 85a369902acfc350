"""One training run, from token rows to a trained model in memory: resumed where an earlier one stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from zephyrctl.errors import EnvironmentFault, Interrupted
from zephyrctl.events import Emit, Note, Warning_
from zephyrctl.libraries import quiet
from zephyrctl.training import checkpoint
from zephyrctl.training.journal import Journal
from zephyrctl.training.logprobs import answer_logprobs, dialogue_loss, preference_scores
from zephyrctl.training.model import load_model
from zephyrctl.training.plan import Plan
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.signals import StopSignal, stop_signal
from zephyrctl.training.trainers import make_dpo_trainer, make_sft_trainer
from zephyrctl.training.watch import Watch

KeepEpoch = Callable[[int, Any, Journal], None]


@dataclass(frozen=True)
class Job:
    """What to train. `train` and `test` are token rows; `beta` is None for SFT; `scratch` outlives a stopped
    run."""

    task: str
    config: TrainingConfig
    init: Path
    tokenizer: Any
    train: list[Any]
    test: list[Any]
    plan: Plan
    scratch: Path
    emit: Emit
    keep_epoch: KeepEpoch | None = None
    beta: float | None = None
    loss: str = "sigmoid"


@dataclass(frozen=True)
class Trained:
    """A model in memory and what was written down on the way."""

    model: Any
    journal: Journal


def run(job: Job) -> Trained:
    """Trains. Raises NotFinite within one step of a number that is not finite, StageRejected where DPO does
    not begin at ln 2, Interrupted after a signal (a checkpoint is saved), EnvironmentFault where memory runs
    out."""
    import torch
    from transformers import set_seed

    job.scratch.mkdir(parents=True, exist_ok=True)
    found = checkpoint.newest(job.scratch)
    for sentence in found.passed_over:
        job.emit(Warning_(f"{sentence}; it is passed over"))
    journal = Journal()
    if found.path is not None:
        journal = Journal.load(found.path)
        job.emit(Note(f"resuming at step {found.step} of {job.plan.steps}"))
    with quiet(), stop_signal() as stop:
        set_seed(job.config.seed)
        try:
            trainer, watch = _prepare(job, journal, stop)
            trainer.add_callback(_as_callback(watch))
            trainer.train(resume_from_checkpoint=None if found.path is None else str(found.path))
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise EnvironmentFault(
                "out of memory while training",
                hint=f"--set micro_batch={max(1, job.plan.micro // 2)} gives the same result in less memory",
            ) from error
        if stop.number is not None and trainer.state.global_step < job.plan.steps:
            raise Interrupted(stop.number, resume="the same command goes on from the checkpoint")
    return Trained(trainer.model, journal)


def _prepare(job: Job, journal: Journal, stop: StopSignal) -> tuple[Any, Watch]:
    """The trainer of the job and its watch; for DPO the reference has spoken by then."""
    watch = Watch(
        task=job.task,
        plan=job.plan,
        journal=journal,
        scratch=job.scratch,
        emit=job.emit,
        stop=stop,
        step_tokens=_tokens_by_step(job),
        save_steps=job.config.save_steps,
    )
    if job.keep_epoch is not None:
        watch.keep_epoch = job.keep_epoch
    prepare = _prepare_sft if job.beta is None else _prepare_dpo
    return prepare(job, watch), watch


def _prepare_sft(job: Job, watch: Watch) -> Any:
    model = load_model(job.init)
    trainer = make_sft_trainer(model, job.tokenizer, job.train, job.config, job.plan, str(job.scratch))
    loss = partial(
        dialogue_loss,
        rows=job.test,
        pad=job.tokenizer.pad_token_id,
        size=job.plan.micro,
        autocast=trainer.accelerator.autocast,
    )
    if job.test:
        watch.held_out = lambda model: {"test/loss": loss(model)}
    return trainer


def _prepare_dpo(job: Job, watch: Watch) -> Any:
    model, reference = load_model(job.init), load_model(job.init).eval()
    beta = float(job.beta or 0.0)
    score = partial(
        answer_logprobs,
        pad=job.tokenizer.pad_token_id,
        size=job.plan.micro,
        autocast=_autocast(job.config.dtype, reference),
    )
    on_train, on_test = score(reference, job.train), score(reference, job.test)
    trainer = make_dpo_trainer(
        model, reference, job.tokenizer, job.train, on_train, job.config, job.plan, str(job.scratch),
        beta=beta, loss=job.loss,
    )  # fmt: skip
    if job.test:
        watch.held_out = lambda model: _named(preference_scores(score(model, job.test), on_test, beta))
    watch.first_loss = math.log(2)
    watch.first_loss_tolerance = 1e-3 if job.config.dtype == "fp32" else 2e-2
    return trainer


def _named(scores: dict[str, float]) -> dict[str, float]:
    return {f"test/{name}": value for name, value in scores.items()}


def _autocast(dtype: str, model: Any) -> Callable[[], AbstractContextManager[Any]]:
    """The arithmetic that training uses, for passes outside the trainer."""
    import torch

    if torch.cuda.is_available():
        model.to("cuda")
    return lambda: torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=dtype == "bf16")


def _tokens_by_step(job: Job) -> Callable[[int], int]:
    """Tokens of the rows of a step (1-based), both answers of a pair counted with their prompt."""
    pairs = job.beta is not None
    sizes = [
        2 * len(r.prompt_ids) + len(r.chosen_ids) + len(r.rejected_ids) if pairs else len(r.input_ids)
        for r in job.train
    ]
    known: dict[int, list[list[int]]] = {}

    def tokens(step: int) -> int:
        epoch, place = divmod(step - 1, job.plan.steps_per_epoch)
        if epoch not in known:
            known.clear()
            known[epoch] = job.plan.batches(epoch)
        return sum(sizes[row] for row in known[epoch][place])

    return tokens


def _as_callback(watch: Watch) -> Any:
    """The watch as transformers wants a callback: with a handler for every event there is."""
    from transformers import TrainerCallback

    class Adapter(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.on_train_begin(args, state, control, **kwargs)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.on_step_begin(args, state, control, **kwargs)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.on_step_end(args, state, control, **kwargs)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.on_log(args, state, control, **kwargs)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.on_save(args, state, control, **kwargs)

    return Adapter()
