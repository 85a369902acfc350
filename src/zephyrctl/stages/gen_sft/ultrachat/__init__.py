"""The method `ultrachat`: the teacher plays both the user and the assistant, on a list of topics."""

from zephyrctl.stages.gen_sft.ultrachat.run import run

__all__ = ["run"]
