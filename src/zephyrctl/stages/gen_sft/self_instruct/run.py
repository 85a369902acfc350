"""The method `self-instruct`: new tasks after the model of seed tasks, then their instances."""

from __future__ import annotations

from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.stages.gen_sft.config import GenSftConfig


def run(config: GenSftConfig, work: Work) -> StepResult:
    """The artifact `sft-data` of this method."""
    raise NotImplementedError
