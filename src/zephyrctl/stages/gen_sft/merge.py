"""The parts of a sharded `gen-sft` made into what one process would have made, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.stages.gen_sft import zephyr_merge
from zephyrctl.stages.gen_sft.self_instruct import merge as self_instruct_merge
from zephyrctl.stages.gen_sft.ultrachat import merge as ultrachat_merge

_METHODS = {
    "zephyr": zephyr_merge.merge,
    "self-instruct": self_instruct_merge.merge,
    "ultrachat": ultrachat_merge.merge,
}


def merge(
    artifacts: Sequence[Artifact], work: Work, *, out: str | None = None, note: str | None = None
) -> StepResult:
    """The version that an unsharded `gen-sft` would have made of the same prompts or topics.

    Raises UsageError when parts are missing, there twice, of different steps, or made with another content of a
    suite or a filter's list; IntegrityError.
    """
    method = artifacts[0].manifest.config.get("method", "zephyr")
    return _METHODS[method](artifacts, work, out=out, note=note)
