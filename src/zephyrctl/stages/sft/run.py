"""`sft`: a model learns to answer as the dialogues do."""

from __future__ import annotations

from functools import partial
from typing import Any

from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.stages.sft.config import SftConfig
from zephyrctl.training.inputs import Method
from zephyrctl.training.preview import preview_dialogues
from zephyrctl.training.stage import train
from zephyrctl.training.tokens import sft_tokens


def run(config: SftConfig, work: Work) -> StepResult:
    """The model artifact `sft-e<epochs>`: loss on assistant text and the token that closes it, on nothing
    else.

    Raises as `zephyrctl.training.stage.train`.
    """
    cut: dict[str, Any] = {
        "max_length": config.max_length,
        "rules": config.rules(),
        "truncation": config.truncation,
    }
    # Wrapped rows go on in the next sequence: none is cut, so none may look so.
    shown = cut | {"max_length": None} if config.packing == "wrapped" else cut
    method = Method(
        task="sft",
        data_kind="sft",
        default_data="sft-data",
        made_by="gen-sft",
        to_tokens=partial(sft_tokens, **cut),
        preview=partial(preview_dialogues, **shown),
        packing=config.packing,
    )
    return train(config, work, method)
