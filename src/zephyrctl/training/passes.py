"""How a global batch is split into forward passes, over processes and over time: nothing that is trained changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from zephyrctl.training.plan import Plan


@dataclass(frozen=True)
class Pass:
    """What one process computes in one forward pass."""

    rows: tuple[int, ...]
    """Row numbers; never empty."""
    weight: float
    """The weight of the whole global step (loss-bearing tokens, or pairs), by which the sum of losses is divided."""
    filler: bool = False
    """A repeated row that bears no loss: this process keeps step with those that still have rows."""


def accumulation(plan: Plan, world: int) -> int:
    """Forward passes of each process per optimiser step."""
    return math.ceil(min(plan.batch, plan.rows) / (plan.micro * world))


class Passes:
    """The batch sampler of one process: one `Pass` after another.

    Rows of one global batch are sorted by length before they are cut into passes of equal number of rows, so that a
    pass pads little and all processes of a pass have rows of like length. Every process makes the same number of
    passes. The trainer names the epoch through `set_epoch`.
    """

    def __init__(
        self, plan: Plan, lengths: Sequence[int], weights: Sequence[float], *, rank: int = 0, world: int = 1
    ) -> None:
        self.plan = plan
        self.lengths = lengths
        self.weights = weights
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.batch_size = plan.micro
        self.drop_last = False

    def set_epoch(self, epoch: int) -> None:
        """The epoch (0-based) whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.plan.rows, self.plan.batch)
        return full * self._count(self.plan.batch) + (self._count(rest) if rest else 0)

    def __iter__(self) -> Iterator[list[Pass]]:
        for batch in self.plan.batches(self.epoch):
            yield from ([one] for one in self.step(batch))

    def step(self, batch: Sequence[int]) -> list[Pass]:
        """This process's passes over one global batch."""
        weight = max(math.fsum(self.weights[row] for row in batch), 1.0)
        ordered = sorted(batch, key=lambda row: (self.lengths[row], row))
        found = []
        for chunk in even(ordered, self._count(len(batch))):
            own = tuple(chunk[self.rank :: self.world])
            found.append(Pass(own, weight) if own else Pass(tuple(chunk[:1]), weight, filler=True))
        return found

    def _count(self, rows: int) -> int:
        return math.ceil(rows / (self.plan.micro * self.world))


def even(rows: Sequence[int], parts: int) -> list[Sequence[int]]:
    """`rows` in order in `parts` runs whose sizes differ by one at the most, the larger ones first."""
    size, more = divmod(len(rows), parts)
    ends = [0]
    for part in range(parts):
        ends.append(ends[-1] + size + (part < more))
    return [rows[a:b] for a, b in pairwise(ends)]


def shares(lengths: Sequence[int], size: int, *, rank: int = 0, world: int = 1) -> list[Pass]:
    """One process's passes over all rows once, for scoring: rows of like length together, every process as many passes.

    `size` rows at the most per pass; the weights are not used.
    """
    if not lengths:
        return []
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    found = []
    for chunk in even(order, math.ceil(len(order) / (size * world))):
        own = tuple(chunk[rank::world])
        found.append(Pass(own, 1.0) if own else Pass(tuple(chunk[:1]), 1.0, filler=True))
    return found
