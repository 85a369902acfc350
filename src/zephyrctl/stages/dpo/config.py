"""Settings of `dpo`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from zephyrctl.chat.rules import Close, TokenRules
from zephyrctl.config import runtime
from zephyrctl.losses import LossSpec
from zephyrctl.training.settings import TrainingConfig


class DpoConfig(TrainingConfig):
    """Direct preference optimisation against the model that training starts from."""

    stage: ClassVar[str] = "dpo"

    epochs: float = Field(3.0, gt=0)
    """Passes over the pairs."""
    lr: float = Field(5e-7, gt=0, le=1e30)
    """Peak learning rate."""
    scheduler: Literal["cosine", "linear", "constant"] = "linear"
    """Shape of the learning rate after the warm-up."""
    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference."""
    loss: list[str] = Field(default_factory=lambda: ["sigmoid"])
    """Preference losses by name or path (`./my.py:fn`); several are added with `loss_weights`."""
    loss_weights: list[float] = Field(default_factory=list)
    """A weight for each loss; none given: 1 each."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The share of pairs taken to be the wrong way round (sigmoid: cDPO; robust: its own correction)."""
    simpo_gamma: float = Field(0.5, ge=0)
    """simpo: the margin that the length-normalised rewards should have, as a share of beta (gamma / beta)."""
    nll_weight: float = Field(0.0, ge=0)
    """Adds so much times the mean negative log-probability of the chosen answers' tokens."""
    length_normalised: bool = False
    """Log-probabilities are divided by the answer's number of tokens before the loss."""
    max_prompt_length: int = Field(512, ge=1)
    """Tokens that a prompt keeps, its last ones, where prompt and answer exceed `max_length`. Where it is not said,
    or leaves answers no room: half of `max_length`."""
    answer_room: Literal["rest", "fixed"] = "rest"
    """Tokens that an answer keeps once its prompt was cut: what the prompt left, or `max_length` less
    `max_prompt_length` however short the prompt is (as TRL up to 0.11)."""
    close: Close = "eos"
    """How an answer ends: the end-of-sequence token; all that the template puts behind it; that and one more."""
    header_in_answer: bool = False
    """The opening of the assistant turn belongs to the answer and bears loss."""
    verify_ref: int = runtime(0, ge=0)
    """Recompute the reference's log-probabilities of so many pairs and stop where they differ from the stored ones."""

    @model_validator(mode="before")
    @classmethod
    def _room_for_answers(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        whole = values.get("max_length", cls.model_fields["max_length"].default)
        wanted = values.get("max_prompt_length")
        if (
            isinstance(whole, int)
            and whole > 1
            and (wanted is None or (isinstance(wanted, int) and wanted >= whole))
        ):
            return {**values, "max_prompt_length": whole // 2}
        return values

    @field_validator("loss", "loss_weights", mode="before")
    @classmethod
    def _one_or_many_losses(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | float | int) else value

    def spec(self) -> LossSpec:
        """The loss that the settings describe. Raises UsageError for settings that fit no loss named."""
        return LossSpec(
            names=tuple(self.loss),
            weights=tuple(self.loss_weights),
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            simpo_gamma=self.simpo_gamma,
            nll_weight=self.nll_weight,
            length_normalised=self.length_normalised,
        )

    def rules(self) -> TokenRules:
        """What the settings say about tokens beyond the chat template."""
        return TokenRules(bos=bool(self.bos), close=self.close, header_in_answer=self.header_in_answer)
