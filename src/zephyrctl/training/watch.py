"""The eyes of a run: every optimiser step is recorded, a number that is not finite stops it, checkpoints come at step
ends, and at the end of an epoch held-out rows say how it goes.

Every process of a crew has a watch and calls it at the same points; only the leader writes and speaks.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyrctl.errors import NotFinite, StageRejected
from zephyrctl.events import Emit, Event, Metric, Note, Progress, Warning_
from zephyrctl.training import checkpoint
from zephyrctl.training.crew import Crew
from zephyrctl.training.journal import Journal
from zephyrctl.training.plan import Plan
from zephyrctl.training.probes import SampleProbe
from zephyrctl.training.signals import StopSignal
from zephyrctl.training.trackers import Trackers
from zephyrctl.training.verdicts import verdicts

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
_SAVE_SHARE = 20.0
"""Time between two checkpoints, as a multiple of the time that the last one took."""
_SCORES = "scores"
_SAYS_NOTHING = {"sft": (), "dpo": ("test/loss", "test/accuracy", "test/margin")}
"""Held-out numbers that are the same before every run: policy and reference are still one."""


@dataclass
class Watch:
    """Handles a trainer's events.

    Once the last step of an epoch (or of the run) is logged, `held_out(model)` gives scores for the metrics, and where
    more epochs follow, `keep_epoch(number, model, journal)` may keep the model; every process calls both. What they say
    before the first step is kept to compare with.
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
    crew: Crew = field(default_factory=Crew)
    samples: SampleProbe | None = None
    """Answers of the model's own to held-out prompts; None where the engine cannot draw any."""
    step_lengths: Callable[[int], dict[str, float]] | None = None
    """Mean lengths (tokens) in a step's rows, for its metrics."""
    step_flops: Callable[[int], float] | None = None
    """What the model's arithmetic in a step needs, in floating-point operations over all processes."""
    peak_flops: float | None = None
    """What all devices together can do in a second; None where that is not known, and so no MFU."""
    trackers: Trackers | None = None
    """Fed by the leader; whoever opened them closes them."""
    _begun: float = field(default=0.0, init=False)
    _saved: float = field(default=0.0, init=False)
    _logged: float = field(default=0.0, init=False)
    """When the newest step was recorded: what comes then is the checkpoint."""
    _stall: float = field(default=0.0, init=False)
    """Seconds the newest checkpoint took."""
    _stall_told: bool = field(default=True, init=False)
    _warned: set[str] = field(default_factory=set, init=False)
    """What the last epoch was warned of: said again only when it comes back, and at the end."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clocks; before the very first step, measures where the model begins."""
        if state.global_step == 0 and (self.held_out is not None or self.samples is not None):
            self._measure_before(kwargs["model"])
        if self.task == "dpo" and self.held_out is not None and self.samples is None:
            self._say(Note("the KL to the starting model is not measured: no process holds all weights"))
        self._begun = self._saved = self._logged = self.clock()
        self._say(Progress(self.task, state.global_step, self.plan.steps))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the step's clock."""
        self._begun = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Decides whether this step ends with a checkpoint, and whether it is the last for now.

        A signal that reached one process stops all of them at the same step.
        """
        if state.global_step >= self.plan.steps:
            return
        number = self.crew.most(self.stop.number or 0)
        if number:
            self.stop.number = number
            control.should_save = control.should_training_stop = True
        elif self.save_steps is not None:
            control.should_save = state.global_step % self.save_steps == 0
        else:
            due = self.clock() - self._saved >= max(_SAVE_SECONDS, _SAVE_SHARE * self._stall)
            control.should_save = bool(self.crew.most(int(due)))
        if control.should_save:
            if self.crew.leads:
                checkpoint.forget(self.scratch / f"checkpoint-{state.global_step}")
            self.crew.wait()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Records the step. Raises NotFinite for a number that is NaN or infinite, StageRejected for a first loss
        that is not what it must be."""
        if "loss" not in logs or "learning_rate" not in logs:
            return
        step = int(state.global_step)
        names = [name for name in (*_KEPT, *_BY_TASK[self.task]) if name in logs]
        values = {_RENAMED.get(name, name): float(logs[name]) for name in names}
        self._require_finite(step, values)
        if step == 1:
            self._require_first_loss(values["loss"])
        if self.step_lengths is not None:
            values |= self.step_lengths(step)
        self._say(Metric(self.task, step, values))
        speeds = self._time(step)
        epoch = step / self.plan.steps_per_epoch
        row = {"step": step, "epoch": epoch, **values}
        closes = step % self.plan.steps_per_epoch == 0 or step == self.plan.steps
        scores = self._measure(step, kwargs["model"]) if closes else {}
        self.journal.metric(row | scores)
        if self.trackers is not None and self.crew.leads:
            told = {f"speed/{name}": value for name, value in speeds.items() if name != "step"}
            self.trackers.log(step, {"epoch": epoch, **values, **scores, **told})
        self._say(Progress(self.task, step, self.plan.steps))
        if closes:
            self._end_epoch(step, epoch, kwargs["model"])
        self._logged = self.clock()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the folder the trainer has written a checkpoint (each process hashes a share); older ones go."""
        folder, crew = self.scratch / f"checkpoint-{state.global_step}", self.crew
        if crew.leads:
            self.journal.save(folder)
        if crew.world > 1:
            crew.wait()
            checkpoint.hash_share(folder, crew.rank, crew.world)
            crew.wait()
        if crew.leads:
            checkpoint.seal(folder, state.global_step, crew.world)
            checkpoint.rotate(self.scratch, saved=state.global_step)
        crew.wait()
        now = self.clock()
        self._stall, self._saved, self._stall_told = now - self._logged, now, False

    def _measure_before(self, model: Any) -> None:
        model.eval()
        found = {} if self.held_out is None else self.held_out(model)
        if self.samples is not None:
            found |= self.samples.begin()
        model.train()
        # A model that is broken from the start is reported by its first step.
        kept = {name: value for name, value in found.items() if math.isfinite(value)}
        self.journal.before[_SCORES] = {k: v for k, v in kept.items() if k not in _SAYS_NOTHING[self.task]}

    def _measure(self, step: int, model: Any) -> dict[str, float]:
        """Held-out scores of the model as it is now, told as they come."""
        if self.held_out is None and self.samples is None:
            return {}
        model.eval()
        scores = {} if self.held_out is None else self.held_out(model)
        if self.samples is not None:
            scores |= self.samples.measure()
        model.train()
        self._require_finite(step, scores)
        self._say(Metric(self.task, step, scores))
        return scores

    def _end_epoch(self, step: int, epoch: float, model: Any) -> None:
        if self.held_out is not None:
            before = self.journal.before.get(_SCORES, {})
            found = verdicts(self.task, self.journal.with_key("test/loss"), before)
            for one in found:
                if not one.bad or one.kind not in self._warned or step == self.plan.steps:
                    self._say(Warning_(one.text) if one.bad else Note(one.text))
            self._warned = {one.kind for one in found if one.bad}
        if self.keep_epoch is not None and epoch == int(epoch) and step < self.plan.steps:
            model.eval()
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
        wanted = self.first_loss
        if wanted is None or abs(loss - wanted) <= self.first_loss_tolerance * max(1.0, abs(wanted)):
            return
        named = " (ln 2)" if math.isclose(wanted, math.log(2)) else ""
        raise StageRejected(
            f"the first loss is {loss:.6f}, not {wanted:.6f}{named}: policy and reference differ before the first step,"
            " so the reference is not the model that training starts from",
            hint="start from the artifact itself: --init NAME@vN",
        )

    def _time(self, step: int) -> dict[str, float]:
        """Records what the step took and held; the memory is that of the process that held most."""
        seconds = max(self.clock() - self._begun, 1e-9)
        tokens = self.step_tokens(step)
        row: dict[str, float] = {
            "step": step,
            "seconds": round(seconds, 4),
            "tokens": tokens,
            "tokens_per_s": round(tokens / seconds, 1),
            "memory_peak_mib": round(
                peak_mib() if self.crew.world == 1 else self.crew.most(int(peak_mib())), 1
            ),
        }
        if self.step_flops is not None and self.peak_flops:
            row["mfu"] = round(self.step_flops(step) / seconds / self.peak_flops, 4)
        if not self._stall_told:
            row["save_seconds"], self._stall_told = round(self._stall, 3), True
        self.journal.time(row)
        return row

    def _say(self, event: Event) -> None:
        if self.crew.leads:
            self.emit(event)


def peak_mib() -> float:
    """The most memory this process has held so far, in MiB (of the GPU where one is in use)."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
