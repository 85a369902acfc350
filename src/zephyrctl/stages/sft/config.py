"""Settings of `sft`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import field_validator

from zephyrctl.chat.rules import TokenRules
from zephyrctl.training.settings import TrainingConfig


class SftConfig(TrainingConfig):
    """Supervised fine-tuning on dialogues."""

    stage: ClassVar[str] = "sft"

    packing: Literal["none", "best-fit", "wrapped"] = "none"
    """best-fit: several whole rows in one sequence of up to `max_length` tokens, which never see each other. wrapped:
    all rows end to end, cut every `max_length` tokens, as the handbook did. A batch then counts sequences."""
    truncation: Literal["keep_start", "keep_end"] = "keep_start"
    """Which end of a dialogue over `max_length` tokens is kept."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Loss on assistant text and the token that closes it, or on every token."""

    @field_validator("packing", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        return {True: "best-fit", False: "none"}.get(value, value) if isinstance(value, bool) else value

    def rules(self) -> TokenRules:
        """What the settings say about tokens beyond the chat template."""
        return TokenRules(bos=bool(self.bos), loss_on=self.loss_on)
