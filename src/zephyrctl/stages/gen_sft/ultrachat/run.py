"""The method `ultrachat`: the teacher plays both the user and the assistant, on a list of topics."""

from __future__ import annotations

from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.stages.gen_sft.config import GenSftConfig


def run(config: GenSftConfig, work: Work) -> StepResult:
    """The artifact `sft-data` of this method."""
    raise NotImplementedError
