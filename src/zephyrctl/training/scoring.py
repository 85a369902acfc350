"""Scores of rows under the model in training, without gradients: what the reference says, held-out numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.training.batches import Sequence_, dialogue_sequences, pair_sequences, tensors
from zephyrctl.training.crew import Crew
from zephyrctl.training.forward import read_predicted, sums_by_owner
from zephyrctl.training.passes import shares


@dataclass(frozen=True)
class Scorer:
    """Runs a model over rows with the arithmetic of its training. `size` rows per pass."""

    model: Any
    pad: int
    size: int
    flat: bool
    autocast: Callable[[], AbstractContextManager[Any]]
    device: Any
    crew: Crew = field(default_factory=Crew)
    before_pass: Callable[[], None] = lambda: None
    """Called before every pass, by every process as often as by the others; what it raises ends the scoring."""

    def pairs(self, rows: Sequence[Any]) -> tuple[list[float], list[float]]:
        """Summed log-probability of every pair's chosen and rejected answer given its prompt, in nats, on every
        process."""
        chosen, rejected = [0.0] * len(rows), [0.0] * len(rows)
        for numbers, sums in self._each(rows, pair_sequences):
            half = len(numbers)
            for place, row in enumerate(numbers):
                chosen[row], rejected[row] = sums[place], sums[half + place]
        return self._shared(chosen), self._shared(rejected)

    def dialogues(self, rows: Sequence[Any]) -> list[float]:
        """Summed log-probability of the loss-bearing tokens of every row, in nats, on every process."""
        found = [0.0] * len(rows)
        for numbers, sums in self._each(rows, dialogue_sequences):
            for place, row in enumerate(numbers):
                found[row] = sums[place]
        return self._shared(found)

    def _each(
        self, rows: Sequence[Any], sequences: Callable[[Sequence[Any]], list[Sequence_]]
    ) -> list[tuple[tuple[int, ...], list[float]]]:
        """Row numbers of each of this process's passes and the sums of their sequences."""
        import torch

        found = []
        self.model.eval()
        for one in shares(
            [row.length for row in rows], self.size, rank=self.crew.rank, world=self.crew.world
        ):
            self.before_pass()
            made = sequences([rows[row] for row in one.rows])
            batch = {k: v.to(self.device) for k, v in tensors(made, pad=self.pad, flat=self.flat).items()}
            with torch.no_grad(), self.autocast():
                logprobs = read_predicted(self.model, batch).logprobs
                sums = sums_by_owner(logprobs, batch["owner"], len(made))
            if not one.filler:
                found.append((one.rows, [float(value) for value in sums]))
        return found

    def _shared(self, values: list[float]) -> list[float]:
        return self.crew.total(values)
