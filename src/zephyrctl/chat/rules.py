"""What a recipe decides about tokens beyond the chat template: the decisions in which its editions differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Close = Literal["eos", "template", "template+eos"]
"""How an answer of a pair ends: with the end-of-sequence token; with all that the template puts behind the text
(Zephyr's: `</s>` and a newline); or with that and one more end-of-sequence token, as TRL 0.7-0.19 appended it."""


@dataclass(frozen=True)
class TokenRules:
    """Token decisions of a recipe. The defaults are the sound ones; editions that repeat history change them."""

    bos: bool = False
    """A beginning-of-sequence token before the first token, where the template gives none (never two)."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """SFT: loss on assistant text and the token that closes it, or on every token."""
    close: Close = "eos"
    """DPO: how an answer ends."""
    header_in_answer: bool = False
    """DPO: the opening of the assistant turn (`<|assistant|>` and a newline) belongs to the answer and bears loss, not
    to the prompt."""
