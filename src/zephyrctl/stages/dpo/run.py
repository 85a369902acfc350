"""`dpo`: a model learns to prefer the chosen answers, held to the model it starts from."""

from __future__ import annotations

from functools import partial

from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.stages.dpo.config import DpoConfig
from zephyrctl.training.stage import Method, train
from zephyrctl.training.tokens import pair_tokens


def run(config: DpoConfig, work: Work) -> StepResult:
    """The model artifact `dpo-e<epochs>`. The reference is the starting model, loaded a second time, its
    digest recorded.

    Raises as `zephyrctl.training.stage.train`.
    """
    method = Method(
        task="dpo",
        data_kind="prefs",
        default_data="prefs",
        made_by="binarize",
        to_tokens=partial(
            pair_tokens, max_length=config.max_length, max_prompt_length=config.max_prompt_length
        ),
        beta=config.beta,
        loss=config.loss[0],
    )
    return train(config, work, method)
