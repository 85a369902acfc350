"""What `zephyrctl binarize` can be asked."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from zephyrctl.config import StageConfig, reads, runtime
from zephyrctl.stages.binarize.scores import parse_score
from zephyrctl.stages.binarize.select import Policy, parse_rejected, parse_ties


class BinarizeConfig(StageConfig):
    """Settings of `binarize`: feedback in, preference pairs out."""

    stage: ClassVar[str] = "binarize"
    stage_version: ClassVar[int] = 2

    feedback: str | None = reads(None)
    """What to pair: a feedback artifact or a file, also one of UltraFeedback's own. Default: the newest
    `feedback`."""
    score: str = "overall"
    """Which score ranks the completions: `overall` (the critique's 1-10), `mean` (of the aspect ratings that
    have a value), `weighted` (their mean by `weights`) or `aspect:NAME`. Second opinions take no part."""
    weights: dict[str, float] = Field(default_factory=dict)
    """For `weighted`: the weight of each aspect, such as `{helpfulness: 2, honesty: 1}`. An aspect without a rating is
    left out, and the weights of the others are scaled up to fill its place."""
    rejected: str = "random"
    """The rejected completion among those that the chosen one may be preferred to: `random`, as in the ZEPHYR
    paper, the `worst`, the `nearest` by score, `quantile=Q` (0 the worst, 1 the nearest; the smallest score that a
    share Q of them does not exceed), or `all-pairs`: a row for every strictly ordered pair of completions."""
    best: Literal["drawn", "first"] = "drawn"
    """The chosen completion where several have the highest score: `drawn` by hash among those that can be preferred to
    another one, or the `first` in the order of the feedback."""
    ties: str = "drop"
    """Chosen against rejected: `drop` never pairs equal scores, `keep` may, `margin=X` wants a distance of at
    least X."""
    drop_sources: list[str] = Field(default_factory=list)
    """Prompts with one of these in `source` take no part, such as `truthful_qa`."""
    suites: list[str] = reads([])
    """Files or folders of evaluation suites: prompts that are one of their questions, character by character, take no
    part. (`gen-prefs` compares with more care, before anything is paid.)"""
    drop: str | None = reads(None)
    """A file of flagged ids (JSONL, JSON or text: of prompts, completions or pairs). A flagged prompt is dropped; a
    flagged completion or pair takes no part."""
    test_fraction: float = 0.1
    """Share of prompts in the test split, by hash of the prompt; used only for input that has no split of its
    own."""
    max_dropped: float = runtime(0.5)
    """Share of prompts that may end without a pair before the stage rejects its own outcome (exit 9)."""

    @field_validator("score")
    @classmethod
    def _score(cls, value: str) -> str:
        return parse_score(value)

    @field_validator("weights", mode="before")
    @classmethod
    def _spaced(cls, value: Any) -> Any:
        for name, weight in value.items() if isinstance(value, dict) else ():
            if weight is None and ":" in str(name):
                raise ValueError(f"'{name}' has no weight: YAML wants a space after the colon")
        return value

    @field_validator("weights")
    @classmethod
    def _weights(cls, value: dict[str, float]) -> dict[str, float]:
        if all(math.isfinite(weight) and weight > 0 for weight in value.values()):
            return value
        raise ValueError("expected a number above 0 for each aspect")

    @field_validator("rejected")
    @classmethod
    def _rejected(cls, value: str) -> str:
        parse_rejected(value)
        return value

    @field_validator("ties")
    @classmethod
    def _ties(cls, value: str) -> str:
        parse_ties(value)
        return value

    @field_validator("drop_sources", "suites", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("test_fraction")
    @classmethod
    def _fraction(cls, value: float) -> float:
        if not 0 <= value < 1:
            raise ValueError("expected a share from 0 up to (not including) 1")
        return value

    @model_validator(mode="after")
    def _together(self) -> BinarizeConfig:
        if (self.score == "weighted") != bool(self.weights):
            raise ValueError(
                "score=weighted and weights belong together: --score weighted --set 'weights={helpfulness: 2, …}'"
            )
        if self.rejected == "all-pairs" and self.ties == "keep":
            raise ValueError("rejected=all-pairs takes strictly ordered pairs; ties=keep does not go with it")
        return self

    def policy(self) -> Policy:
        """The settings as the pure selection wants them."""
        ties, margin = parse_ties(self.ties)
        rejected, quantile = parse_rejected(self.rejected)
        return Policy(self.score, rejected, ties, margin, self.seed, quantile, self.best, dict(self.weights))
