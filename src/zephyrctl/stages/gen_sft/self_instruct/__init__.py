"""The method `self-instruct`: new tasks after the model of seed tasks, then their instances."""

from zephyrctl.stages.gen_sft.self_instruct.run import run

__all__ = ["run"]
