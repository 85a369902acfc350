"""A worker in which process 1 goes wrong in its third step, as the variable FAULT says. For tests only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from zephyrctl.training import loop, trainers, worker
from zephyrctl.training.signals import StopSignal

STEP = 2
"""Steps done before it goes wrong."""


def patch(fault: str) -> None:
    """Spoils this process."""
    sound = trainers.PlannedSft.loss_of_pass

    def spoiled(self: Any, model: Any, inputs: Any) -> Any:
        import torch

        total, sums = sound(self, model, inputs)
        if self.state.global_step < STEP:
            return total, sums
        if fault == "memory":
            raise torch.OutOfMemoryError("for the test")
        return total * float("nan"), sums

    @contextlib.contextmanager
    def deaf() -> Iterator[StopSignal]:
        with loop_signal():
            yield StopSignal()

    loop_signal = loop.stop_signal
    if fault == "deaf":
        loop.stop_signal = deaf
    else:
        trainers.PlannedSft.loss_of_pass = spoiled  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        patch(os.environ["FAULT"])
    raise SystemExit(worker.main())
