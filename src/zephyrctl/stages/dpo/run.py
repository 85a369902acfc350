"""`dpo`: a model learns to prefer the chosen answers, held to the model it starts from."""

from __future__ import annotations

from functools import partial
from typing import Any

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.losses import loss_inputs
from zephyrctl.stages.dpo.config import DpoConfig
from zephyrctl.training.inputs import Method
from zephyrctl.training.preview import preview_pairs
from zephyrctl.training.stage import train
from zephyrctl.training.tokens import pair_tokens


def run(config: DpoConfig, work: Work) -> StepResult:
    """The model artifact `dpo-e<epochs>`. The reference is the starting model, asked once before the first step, its
    digest recorded.

    Raises as `zephyrctl.training.stage.train`.
    """
    cut: dict[str, Any] = {
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
        "rules": config.rules(),
        "answer_room": config.answer_room,
    }
    spec = config.spec()
    method = Method(
        task="dpo",
        data_kind="prefs",
        default_data="prefs",
        made_by="binarize",
        to_tokens=partial(pair_tokens, **cut),
        preview=partial(preview_pairs, **cut),
        loss=spec,
        verify_ref=config.verify_ref,
        inputs=tuple(
            InputRef(role=role, ref=role.partition(":")[2], digest=digest, kind="loss")
            for role, digest in loss_inputs(spec)
        ),
    )
    return train(config, work, method)
