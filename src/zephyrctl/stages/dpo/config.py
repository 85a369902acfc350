"""Settings of `dpo`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from zephyrctl.training.settings import TrainingConfig


class DpoConfig(TrainingConfig):
    """Direct preference optimisation against the model that training starts from."""

    stage: ClassVar[str] = "dpo"

    epochs: float = Field(3.0, gt=0)
    """Passes over the pairs."""
    lr: float = Field(5e-7, gt=0)
    """Peak learning rate."""
    scheduler: Literal["cosine", "linear", "constant"] = "linear"
    """Shape of the learning rate after the warm-up."""
    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference."""
    loss: Literal["sigmoid"] = "sigmoid"
    """The preference loss; sigmoid is DPO's own."""
    max_prompt_length: int = Field(512, ge=1)
    """Tokens that a prompt keeps, its last ones, where prompt and answer exceed `max_length`."""
