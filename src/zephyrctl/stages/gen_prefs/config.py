"""What `zephyrctl gen-prefs` can be asked."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from zephyrctl.asking.config import AskingConfig
from zephyrctl.config import reads, runtime
from zephyrctl.judges.ultrafeedback import ASPECTS

LLM = "llm"
"""The scorer that is a language model: the teacher."""


class GenPrefsConfig(AskingConfig):
    """Settings of `gen-prefs`: prompts in, completions with ratings out."""

    stage: ClassVar[str] = "gen-prefs"

    teacher: str | None = None
    """The model that rates the completions; not needed with a `scorer` that is no language model."""
    pool: list[str] = Field(default_factory=list, max_length=32)
    """The models that answer, each with sampling settings of its own where wanted (`MODEL?temperature=0.2`). Unset =
    `members` of different strength from the providers whose keys are set, the newest checkpoint here among them; the
    sandbox's teacher brings its own four."""
    members: int = Field(4, ge=2, le=8)
    """How many members of the pool answer each prompt; of a larger pool that many are drawn for each."""
    n: int = Field(1, ge=1, le=16)
    """How many answers each member gives."""
    prompts: list[str] = reads([])
    """What they answer: artifacts or files, each with `=weight` where wanted, or `-`. Default: the prompts of the
    newest `sft-data`, else the seeds that ship with zephyrctl."""
    completions: str | None = reads(None)
    """Completions that exist already (a feedback artifact or a file): they are rated, and none is asked for."""
    principles: Literal["ultrafeedback", "none"] = "none"
    """Whether each completion is asked for with a system message drawn from the weighted principles, as in
    UltraFeedback."""
    scorer: str = LLM
    """Who rates: `llm` (the teacher), `rm:MODEL` (a sequence classifier) or `./file.py:fn` (a function)."""
    rows: int | None = Field(None, ge=1)
    """How many prompts to use, from the first on; unset = all of them (1,000 of the sandbox's own)."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature of the completions; 1.0 as in UltraFeedback."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the completions' sampling distribution; 1 = all of it."""
    max_tokens: int = Field(1024, ge=1)
    """Longest completion in tokens; one cut there is left out and counted."""
    judge_mode: Literal["aspects", "overall", "both"] = "both"
    """What the teacher rates: `aspects` (1-5, one request for each over all completions of a prompt), `overall` (a
    critique and a score 1-10, one request for each completion), or both, as UltraFeedback does."""
    aspects: list[str] = Field(default_factory=lambda: list(ASPECTS))
    """The aspects that are rated."""
    judge_temperature: float = Field(0.0, ge=0)
    """Sampling temperature of the judge; 0 as in UltraFeedback."""
    repair: bool = True
    """Whether an unreadable judgement is followed by one short turn that asks for the ratings alone."""
    judge_max_tokens: int = Field(1024, ge=1)
    """Longest judgement in tokens."""
    second_judge: str | None = None
    """Another judge for rows that are close or contradict themselves."""
    when: str = "margin<1"
    """Which rows the second judge gets: `margin<X` (the two best scores are less than X apart), `conflict` (aspects
    and overall score disagree on the best), `margin<X or conflict`, or `always`."""
    retest: float = Field(0.0, ge=0, le=1)
    """Share of prompts that the teacher rates a second time with another draw, to see how far it agrees with
    itself."""
    filters: list[str] = Field(default_factory=list)
    """Filters that prompts go through before they are asked: `language=en`, `max-tokens=1024` …"""
    tokenizer: str | None = reads(None)
    """The model whose tokens are counted where a length in tokens is asked for."""
    suites: list[str] = reads([])
    """Evaluation suites that prompts are compared with; unset = those in the project's `suites` folder."""
    contaminated: Literal["drop", "keep"] = "drop"
    """What becomes of prompts that overlap with a suite."""
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

    @field_validator("pool", "prompts", "filters", "suites", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _rates_something(self) -> Self:
        if not self.aspects and self.judge_mode == "aspects":
            raise ValueError("aspects is empty: nothing would be rated")
        if self.completions and self.prompts:
            raise ValueError("completions brings its own prompts, so prompts has no place beside it")
        return self
