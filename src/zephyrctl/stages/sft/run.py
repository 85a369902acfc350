"""`sft`: a model learns to answer as the dialogues do."""

from __future__ import annotations

from functools import partial

from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.stages.sft.config import SftConfig
from zephyrctl.training.packing import pack_rows
from zephyrctl.training.stage import Method, train
from zephyrctl.training.tokens import sft_tokens


def run(config: SftConfig, work: Work) -> StepResult:
    """The model artifact `sft-e<epochs>`: loss on assistant text and the token that closes it, on nothing
    else.

    Raises as `zephyrctl.training.stage.train`.
    """
    method = Method(
        task="sft",
        data_kind="sft",
        default_data="sft-data",
        made_by="gen-sft",
        to_tokens=partial(sft_tokens, max_length=config.max_length),
        pack=partial(pack_rows, capacity=config.max_length) if config.packing != "none" else None,
    )
    return train(config, work, method)
