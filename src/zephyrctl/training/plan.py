"""How many steps, which rows in each, at which learning rate: all of it known before a model is loaded. Pure
functions.

A global batch is what the user states. Which rows make it depends on the seed and the epoch alone; how it is
split into forward passes depends on `micro` and changes nothing but speed and memory.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zephyrctl.errors import UsageError
from zephyrctl.records import row_seed

FEW_STEPS = 20


@dataclass(frozen=True)
class Plan:
    """The optimiser steps of a run. `rows` are training rows after drops; `batch` rows make a step."""

    rows: int
    batch: int
    micro: int
    steps: int
    warmup_steps: int
    scheduler: str
    peak_lr: float
    seed: int

    @property
    def accumulation(self) -> int:
        """Forward passes per optimiser step."""
        return math.ceil(min(self.batch, self.rows) / self.micro)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the rows; the last may be short."""
        return math.ceil(self.rows / self.batch)

    @property
    def epochs(self) -> float:
        """Passes over the rows, as planned in whole steps."""
        return self.steps / self.steps_per_epoch

    def learning_rates(self) -> list[float]:
        """The learning rate of every step, as Hugging Face's schedules give it."""
        return [
            self.peak_lr * factor(self.scheduler, s, self.warmup_steps, self.steps) for s in range(self.steps)
        ]

    def batches(self, epoch: int) -> list[list[int]]:
        """The row numbers of every global batch of an epoch (0-based), in training order."""
        order = list(range(self.rows))
        random.Random(row_seed(self.seed, "epoch", epoch)).shuffle(order)
        return [order[i : i + self.batch] for i in range(0, self.rows, self.batch)]


def make_plan(
    rows: int,
    *,
    batch: int,
    micro: int,
    epochs: float,
    max_steps: int | None,
    warmup: float,
    scheduler: str,
    lr: float,
    seed: int,
) -> Plan:
    """The plan for `rows` rows. `warmup` is a share of the steps, rounded up.

    Raises UsageError where the learning rates sum to 0, because such a run would train nothing.
    """
    if rows < 1:
        raise UsageError("no row is left to train on", hint="the counts above say why rows were dropped")
    per_epoch = math.ceil(rows / batch)
    steps = max_steps if max_steps is not None else max(1, math.ceil(epochs * per_epoch - 1e-9))
    plan = Plan(rows, batch, min(micro, batch), steps, math.ceil(warmup * steps), scheduler, lr, seed)
    if sum(plan.learning_rates()) <= 0:
        raise UsageError(
            f"this run would train nothing: {steps} step{'s' if steps != 1 else ''}, {plan.warmup_steps} of"
            " warm-up,"
            " learning rates that sum to 0",
            hint="more --epochs or a smaller --batch-size; or no warm-up: --set warmup=0",
        )
    return plan


def factor(scheduler: str, step: int, warmup: int, steps: int) -> float:
    """The learning rate of `step` (0-based) as a share of the peak. Raises UsageError for an unknown
    scheduler."""
    if step < warmup:
        return step / max(1, warmup)
    if scheduler == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    if scheduler == "linear":
        return max(0.0, 1.0 - progress)
    if scheduler == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    raise UsageError(f"unknown scheduler '{scheduler}'", hint="cosine, linear or constant")


class MicroBatches:
    """The batch sampler of a run: row numbers of one forward pass after another.

    Rows of one global batch are sorted by length before they are split, so that a pass pads little. Every
    full batch gives exactly `plan.accumulation` passes. The trainer names the epoch through
    `sampler.set_epoch`.
    """

    def __init__(self, plan: Plan, lengths: Sequence[int]) -> None:
        self.plan = plan
        self.lengths = lengths
        self.sampler = _Epoch()
        self.batch_size = plan.micro
        self.drop_last = False

    def __len__(self) -> int:
        full, rest = divmod(self.plan.rows, self.plan.batch)
        return full * math.ceil(self.plan.batch / self.plan.micro) + math.ceil(rest / self.plan.micro)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.plan.batches(self.sampler.epoch):
            ordered = sorted(batch, key=lambda row: (self.lengths[row], row))
            yield from (ordered[i : i + self.plan.micro] for i in range(0, len(ordered), self.plan.micro))


class _Epoch:
    """Holds the epoch that the trainer last announced."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
