"""What `zephyrctl gen-prefs` can be asked."""

from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from zephyrctl.asking.config import AskingConfig
from zephyrctl.config import reads, runtime
from zephyrctl.judges.ultrafeedback import ASPECTS


class GenPrefsConfig(AskingConfig):
    """Settings of `gen-prefs`: prompts in, completions with ratings out."""

    stage: ClassVar[str] = "gen-prefs"

    teacher: str
    """The model that rates the completions."""
    pool: list[str] = Field(default_factory=list, max_length=8)
    """The models that answer, two to eight of them. The sandbox's teacher brings its own four."""
    prompts: str | None = reads(None)
    """What they answer: an artifact, a file, or `-`. Default: the prompts of the newest `sft-data`."""
    rows: int | None = Field(None, ge=1)
    """How many prompts to use, from the first on; unset = all of them (1,000 of the sandbox's own)."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature of the completions; 1.0 as in UltraFeedback."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the completions' sampling distribution; 1 = all of it."""
    max_tokens: int = Field(1024, ge=1)
    """Longest completion in tokens; one cut there is left out and counted."""
    aspects: list[str] = Field(default_factory=lambda: list(ASPECTS))
    """The aspects rated 1-5, one request for each over all completions of a prompt. Empty = the overall score
    alone."""
    overall: bool = True
    """Whether each completion also gets a critique and an overall score 1-10, one request for each."""
    judge_temperature: float = Field(0.0, ge=0)
    """Sampling temperature of the judge's first reply; 0 as in UltraFeedback."""
    retry_temperature: float = Field(0.7, ge=0)
    """Sampling temperature when an unreadable judgement is asked for again: at 0 the same reply would come
    back."""
    judge_draws: int = Field(3, ge=1)
    """How many times a judgement is asked for before it counts as missing."""
    judge_max_tokens: int = Field(1024, ge=1)
    """Longest judgement in tokens."""
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of prompts in the test split, by hash of the prompt; prompts from an artifact keep the split they
    have."""
    max_failures: float = runtime(0.2, ge=0, le=1)
    """Share of completions left out, or of judgements missing, past which the stage rejects its own outcome
    (exit 9)."""

    @field_validator("aspects")
    @classmethod
    def _aspects(cls, value: list[str]) -> list[str]:
        unknown = [name for name in value if name not in ASPECTS]
        if unknown or len(set(value)) != len(value):
            raise ValueError(f"expected distinct names among {', '.join(ASPECTS)}")
        return value

    @model_validator(mode="after")
    def _rates_something(self) -> Self:
        if not self.aspects and not self.overall:
            raise ValueError("aspects is empty and overall is false: nothing would be rated")
        return self
