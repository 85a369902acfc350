"""What each optimiser step holds, known from the plan: tokens, mean lengths, arithmetic. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from zephyrctl.training.flops import Work, flops_per_token, mean_context
from zephyrctl.training.footprint import Shape
from zephyrctl.training.packing import PackedRows
from zephyrctl.training.plan import Plan


@dataclass
class StepSizes:
    """Sizes by step (1-based). `documents[row]` are the lengths, in tokens, of what row `row` runs through the model:
    of a pair both sequences, of a pack every row in it."""

    plan: Plan
    documents: Sequence[Sequence[int]]
    named: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Name to a length for every row, such as `length/chosen`: what the metrics of a step give the mean of."""
    _order: dict[int, list[list[int]]] = field(default_factory=dict, init=False)

    def rows(self, step: int) -> list[int]:
        """The row numbers of the step."""
        epoch, place = divmod(step - 1, self.plan.steps_per_epoch)
        if epoch not in self._order:
            self._order.clear()
            self._order[epoch] = self.plan.batches(epoch)
        return self._order[epoch][place]

    def tokens(self, step: int) -> int:
        """Tokens that the step runs through the model."""
        return sum(self._totals[row] for row in self.rows(step))

    def lengths(self, step: int) -> dict[str, float]:
        """The means of `named` over the step's rows."""
        rows = self.rows(step)
        return {name: sum(values[row] for row in rows) / len(rows) for name, values in self.named.items()}

    def flops(self, step: int, shape: Shape, *, lora: bool = False) -> float:
        """Floating-point operations of the model's arithmetic in the step (see `flops`); 0 for a model that cannot be
        counted."""
        lengths = [length for row in self.rows(step) for length in self.documents[row]]
        work: Work | None = flops_per_token(shape, mean_context(lengths), lora=lora)
        return 0.0 if work is None else work.model * sum(lengths)

    @cached_property
    def _totals(self) -> list[int]:
        return [sum(lengths) for lengths in self.documents]


def step_sizes(rows: Any, plan: Plan, *, pairs: bool) -> StepSizes:
    """The sizes of token rows or packs (`TokenRows`, `PackedRows`) as `plan` takes them."""
    if pairs:
        prompt, chosen, rejected = (column.lengths() for column in rows.columns.values())
        both = [[p + c, p + r] for p, c, r in zip(prompt, chosen, rejected, strict=True)]
        return StepSizes(plan, both, {"length/chosen": chosen, "length/rejected": rejected})
    lengths = rows.lengths()
    documents = rows.plan.documents() if isinstance(rows, PackedRows) else [[length] for length in lengths]
    return StepSizes(plan, documents, {"length": lengths})
