"""What a run takes beside memory: arithmetic, time, GPU-hours, checkpoints, disk. Pure functions.

Time is arithmetic over what the GPUs can do at best, times a share that is stated (MFU): an estimate, never a promise.
"""

from __future__ import annotations

from dataclasses import dataclass

from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.flops import flops_per_token, peak_flops
from zephyrctl.training.footprint import Shape
from zephyrctl.training.hardware import Hardware
from zephyrctl.training.lengths import Workload
from zephyrctl.training.memory import count_trained
from zephyrctl.training.plan import Plan
from zephyrctl.training.settings import TrainingConfig

USUAL_MFU = 0.4
"""The share of the peak that is assumed where none is stated; activations that are recomputed lower it."""
USUAL_DISK = 10**9
"""Bytes a second that a machine is assumed to write where nothing is stated."""
_KEPT = 3
"""Checkpoints on disk at most: two, and the one that is being written."""


@dataclass(frozen=True)
class Time:
    """How long a run takes at `mfu`, on GPUs of `peak` operations a second each; None where a GPU is not known."""

    flops: float
    """Operations that the model needs for all steps, and for the reference's one pass."""
    mfu: float
    stated: bool
    peak: float | None
    gpus: int
    seconds: float | None

    @property
    def gpu_hours(self) -> float | None:
        """GPUs times hours."""
        return None if self.seconds is None else self.seconds * self.gpus / 3600


@dataclass(frozen=True)
class Disk:
    """Bytes that a run writes."""

    checkpoint: int
    """One checkpoint, over all processes."""
    stall: float
    """Seconds that training waits while one is written."""
    model: int
    """The model that is made, and one for each epoch that is kept."""
    speed: float

    @property
    def needed(self) -> int:
        """Free bytes that the run wants at its fullest."""
        return _KEPT * self.checkpoint + self.model


def estimate_time(
    config: TrainingConfig,
    shape: Shape,
    choice: EngineChoice,
    hardware: Hardware,
    work: Workload,
    plan: Plan,
    *,
    mfu: float | None = None,
) -> Time | None:
    """How long all steps of `plan` take; None for a model that cannot be counted."""
    cost = flops_per_token(shape, work.context, lora=config.lora, recompute=choice.recompute)
    if cost is None:
        return None
    epochs = plan.steps / plan.steps_per_epoch
    flops = cost.model * work.tokens * epochs + (cost.forward * work.tokens if config.stage == "dpo" else 0.0)
    reached = mfu if mfu is not None else USUAL_MFU * cost.model / cost.machine
    peak = peak_flops(hardware.gpus[0].name) if hardware.gpus else None
    seconds = None if peak is None else flops / (peak * choice.processes * reached)
    return Time(flops, reached, mfu is not None, peak, choice.processes, seconds)


def estimate_disk(
    config: TrainingConfig, shape: Shape, choice: EngineChoice, *, speed: float | None = None
) -> Disk | None:
    """What a run writes; None for a model that cannot be counted. Adapters are saved without the frozen weights."""
    counts = count_trained(config, shape)
    if counts is None or shape.parameters is None:
        return None
    moments = 4 if config.optimizer == "rmsprop" else 8
    copies = 2 if choice.name in ("zero2", "zero3") and config.dtype == "bf16" else 0
    checkpoint = counts.trained * (4 + moments + copies)
    model = shape.parameters * (2 if config.dtype == "bf16" else 4)
    if config.lora:
        model += 4 * counts.trained
    kept = 1 + (int(config.epochs) if config.keep_epochs else 0)
    rate = float(speed or USUAL_DISK)
    return Disk(checkpoint, checkpoint / (rate * choice.machines), model * kept, rate)
