"""How many steps, which rows in each, at which learning rate: all of it known before a model is loaded. Pure
functions.

A global batch is what the user states. Which rows make it depends on the seed and the epoch alone; how it is
split into forward passes depends on `micro` and changes nothing but speed and memory.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
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
    longest: int | None = None
    """The row (or pack) that memory is tried with: it is in the first batch of all."""

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
        """The row numbers of every global batch of an epoch (0-based), in training order.

        They depend on the seed and the epoch; in epoch 0 the `longest` row changes places with the first, so that
        memory that is not enough fails in the first step.
        """
        order = list(range(self.rows))
        random.Random(row_seed(self.seed, "epoch", epoch)).shuffle(order)
        if epoch == 0 and self.longest is not None:
            place = order.index(self.longest)
            order[0], order[place] = order[place], order[0]
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
    longest: int | None = None,
) -> Plan:
    """The plan for `rows` rows. `warmup` is a share of the steps, rounded up; `longest` see `longest_row`.

    Raises UsageError where the learning rates sum to 0, because such a run would train nothing.
    """
    if rows < 1:
        raise UsageError("no row is left to train on", hint="the counts above say why rows were dropped")
    per_epoch = math.ceil(rows / batch)
    steps = max_steps if max_steps is not None else max(1, math.ceil(epochs * per_epoch - 1e-9))
    plan = Plan(
        rows, batch, min(micro, batch), steps, math.ceil(warmup * steps), scheduler, lr, seed, longest
    )
    if sum(plan.learning_rates()) <= 0:
        raise UsageError(
            f"this run would train nothing: {steps} step{'s' if steps != 1 else ''}, {plan.warmup_steps} of"
            " warm-up,"
            " learning rates that sum to 0",
            hint="more --epochs or a smaller --batch-size; or no warm-up: --set warmup=0",
        )
    return plan


def longest_row(lengths: Sequence[int]) -> int:
    """The number of the longest row, of several the first."""
    return max(range(len(lengths)), key=lambda row: (lengths[row], -row))


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
