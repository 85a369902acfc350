"""The eyes of a run: every optimiser step is recorded, a number that is not finite stops it, checkpoints
come at step ends."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyrctl.errors import NotFinite, StageRejected
from zephyrctl.events import Emit, Metric, Progress
from zephyrctl.training import checkpoint
from zephyrctl.training.journal import Journal
from zephyrctl.training.plan import Plan
from zephyrctl.training.signals import StopSignal

_RENAMED = {"learning_rate": "lr", "mean_token_accuracy": "token_accuracy"}
_KEPT = ("loss", "learning_rate", "grad_norm")
_BY_TASK = {
    "sft": ("entropy", "mean_token_accuracy"),
    "dpo": (
        "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
        "logps/rejected",
    ),
}  # fmt: skip
_SAVE_SECONDS = 60.0
_LN2 = math.log(2)


@dataclass
class Watch:
    """Handles a trainer's events.

    Once the last step of an epoch (or of the run) is logged, `held_out(model)` gives scores for the metrics,
    and where more epochs follow, `keep_epoch(number, model, journal)` may keep the model.
    """

    task: str
    plan: Plan
    journal: Journal
    scratch: Path
    emit: Emit
    stop: StopSignal
    step_tokens: Callable[[int], int]
    held_out: Callable[[Any], dict[str, float]] | None = None
    keep_epoch: Callable[[int, Any, Journal], None] | None = None
    save_steps: int | None = None
    first_loss: float | None = None
    """The loss that step 1 must have (ln 2 for DPO), None where any will do."""
    first_loss_tolerance: float = 1e-3
    clock: Callable[[], float] = time.monotonic
    _begun: float = field(default=0.0, init=False)
    _saved: float = field(default=0.0, init=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clocks."""
        self._begun = self._saved = self.clock()
        self.emit(Progress(self.task, state.global_step, self.plan.steps))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the step's clock."""
        self._begun = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Decides whether this step ends with a checkpoint, and whether it is the last for now."""
        if state.global_step >= self.plan.steps:
            return
        if self.stop.number is not None:
            control.should_save = control.should_training_stop = True
        elif self.save_steps is not None:
            control.should_save = state.global_step % self.save_steps == 0
        else:
            control.should_save = self.clock() - self._saved >= _SAVE_SECONDS
        if control.should_save:
            checkpoint.forget(self.scratch / f"checkpoint-{state.global_step}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Records the step. Raises NotFinite for a loss or gradient norm that is NaN or infinite."""
        if "loss" not in logs or "learning_rate" not in logs:
            return
        step = int(state.global_step)
        names = [name for name in (*_KEPT, *_BY_TASK[self.task]) if name in logs]
        values = {_RENAMED.get(name, name): float(logs[name]) for name in names}
        self._require_finite(step, values)
        if step == 1:
            self._require_first_loss(values["loss"])
        epoch = step / self.plan.steps_per_epoch
        self.journal.metric({"step": step, "epoch": epoch, **values})
        self.emit(Metric(self.task, step, values))
        self.emit(Progress(self.task, step, self.plan.steps))
        self._time(step)
        if step % self.plan.steps_per_epoch == 0 or step == self.plan.steps:
            self._end_epoch(step, epoch, kwargs["model"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the folder the trainer has written a checkpoint, and removes older ones."""
        folder = self.scratch / f"checkpoint-{state.global_step}"
        self.journal.save(folder)
        checkpoint.seal(folder, state.global_step)
        checkpoint.rotate(self.scratch)
        self._saved = self.clock()

    def _end_epoch(self, step: int, epoch: float, model: Any) -> None:
        model.eval()
        if self.held_out is not None:
            scores = self.held_out(model)
            self._require_finite(step, scores)
            self.journal.metric({"step": step, "epoch": epoch, **scores})
            self.emit(Metric(self.task, step, scores))
        if self.keep_epoch is not None and epoch == int(epoch) and step < self.plan.steps:
            self.keep_epoch(int(epoch), model, self.journal)
        model.train()

    def _require_finite(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFinite(
                    f"{name} is {value} at step {step} of {self.plan.steps}; nothing was committed",
                    hint="a smaller --lr, --set max_grad_norm=1, or --set dtype=fp32",
                )

    def _require_first_loss(self, loss: float) -> None:
        if self.first_loss is None or abs(loss - self.first_loss) <= self.first_loss_tolerance:
            return
        raise StageRejected(
            f"the first loss is {loss:.6f}, not {self.first_loss:.6f} (ln 2): policy and reference differ"
            " before the"
            " first step, so the reference is not the model that training starts from",
            hint="start from the artifact itself: --init NAME@vN",
        )

    def _time(self, step: int) -> None:
        seconds = max(self.clock() - self._begun, 1e-9)
        tokens = self.step_tokens(step)
        self.journal.time(
            {
                "step": step,
                "seconds": round(seconds, 4),
                "tokens": tokens,
                "tokens_per_s": round(tokens / seconds, 1),
                "memory_peak_mib": round(peak_mib(), 1),
            }
        )


def peak_mib() -> float:
    """The most memory this process has held so far, in MiB (of the GPU where one is in use)."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
