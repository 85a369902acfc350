"""The settings that `sft` and `dpo` share. Names and defaults; the recipe's numbers live in the editions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from zephyrctl.config import StageConfig, reads, runtime
from zephyrctl.errors import UsageError

_TINY = 50_000_000


class TrainingConfig(StageConfig):
    """What both training stages can be asked."""

    init: str | None = reads(None)
    """The model to start from: a folder, an artifact, a Hub name, or `sandbox`."""
    data: list[str] = reads([])
    """What to train on, each with `=weight` where wanted (0.5 = half of its rows, 2 = every row twice); without it the
    newest artifact under the preceding stage's default name is taken."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps; wins over `epochs`."""
    lr: float = Field(2e-5, gt=0)
    """Peak learning rate."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the optimiser steps in which the learning rate rises from 0."""
    batch_size: int = Field(32, ge=1)
    """Rows per optimiser step, whatever `micro_batch` is."""
    max_length: int = Field(1024, ge=8)
    """Tokens a sequence may have; longer ones are cut, and counted."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first beta."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's second beta."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them alone."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """bf16: float32 master weights, bfloat16 autocast, saved in bfloat16. fp32: float32 throughout."""
    system: str | None = None
    """The system turn that dialogues without one are given, in training and in the saved chat template
    (empty text: an empty system turn). None leaves the template of the model it starts from as it is."""
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the prompts held out, by their hash, from data that comes without splits."""
    keep_epochs: bool = False
    """Keep a model per epoch, as `<name>.epoch<k>`."""
    micro_batch: int | None = runtime(None, ge=1)
    """Rows per forward pass; gradients are accumulated to `batch_size`. Without it 8, or 32 for a tiny
    model."""
    save_steps: int | None = runtime(None, ge=1)
    """Save a checkpoint every so many steps; without it about once a minute."""

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if self.out is not None and not self.out.strip():
            raise ValueError("`out` is empty")
        return self

    def length_label(self) -> str:
        """`e3` for three epochs, `s200` for 200 steps: the tail of the default name."""
        return f"s{self.max_steps}" if self.max_steps is not None else f"e{self.epochs:g}"

    def rows_per_pass(self, parameters: int | None = None) -> int:
        """Rows per forward pass, never more than a batch; without a setting more for a tiny model than for
        others."""
        default = 32 if parameters is not None and parameters < _TINY else 8
        return min(self.micro_batch or default, self.batch_size)


def need_length(max_length: int, context: int | None) -> None:
    """Raises UsageError where `max_length` exceeds the model's context (tokens)."""
    if context is not None and max_length > context:
        raise UsageError(
            f"max_length {max_length} is more than the model's context of {context} tokens",
            hint=f"--max-length {context}",
        )
