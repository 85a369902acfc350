"""What `zephyrctl eval` can be asked."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from zephyrctl.asking.config import AskingConfig
from zephyrctl.config import reads, runtime


class EvalConfig(AskingConfig):
    """Settings of `eval`: a model in, one verdict per graded answer out."""

    stage: ClassVar[str] = "eval"

    model: str = reads(...)
    """The model to measure: ckpt/NAME, a folder, NAME@vN, `sandbox` (the shipped base model)."""
    baseline: str | None = reads(None)
    """The model to compare with. Default: the base model that the measured one was trained from."""
    judge: str = "sandbox:judge"
    """The model that judges. Its name becomes part of every score's name."""
    rows: int = Field(200, ge=1)
    """How many prompts to ask; the first n of more prompts are those of n."""
    temperature: float = Field(0.7, gt=0)
    """Temperature of the `sampled` answers; `greedy` ones are always measured too."""
    max_tokens: int = Field(64, ge=1)
    """Longest answer in tokens; one cut there is graded as it stands, and counted."""
    judge_max_tokens: int = Field(1024, ge=1)
    """Longest judgement in tokens."""
    micro_batch: int | None = runtime(None, ge=1)
    """Answers generated together by a local model; unset = what suits the machine."""
    max_failures: float = runtime(0.2, ge=0, le=1)
    """Share of verdicts missing past which the stage rejects its own outcome (exit 9)."""

    @model_validator(mode="after")
    def _in_one_piece(self) -> Self:
        parts = {"pilot": self.pilot, "shard": self.shard, "accept_partial": self.accept_partial}
        for name, value in parts.items():
            if value:
                raise ValueError(f"an evaluation is one piece of work, so {name} does not apply to it")
        return self
