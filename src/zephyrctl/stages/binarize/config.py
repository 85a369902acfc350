"""What `zephyrctl binarize` can be asked."""

from typing import ClassVar, Literal

from pydantic import field_validator

from zephyrctl.config import StageConfig, reads, runtime
from zephyrctl.stages.binarize.select import Policy, parse_ties


class BinarizeConfig(StageConfig):
    """Settings of `binarize`: feedback in, preference pairs out."""

    stage: ClassVar[str] = "binarize"

    feedback: str | None = reads(None)
    """What to pair: a feedback artifact or a file. Default: the newest `feedback`."""
    score: str = "overall"
    """Which score ranks the completions: `overall` (the critique's 1-10), `mean` (of the aspect ratings that
    have a value) or `aspect:NAME`."""
    rejected: Literal["random", "worst"] = "random"
    """The rejected completion: a random lower one, as in the ZEPHYR paper, or the worst."""
    ties: str = "drop"
    """Chosen against rejected: `drop` never pairs equal scores, `keep` may, `margin=X` wants a distance of at
    least X."""
    test_fraction: float = 0.1
    """Share of prompts in the test split, by hash of the prompt; used only for input that has no split of its
    own."""
    max_dropped: float = runtime(0.5)
    """Share of prompts that may end without a pair before the stage rejects its own outcome (exit 9)."""

    @field_validator("score")
    @classmethod
    def _score(cls, value: str) -> str:
        if value in ("overall", "mean") or (value.startswith("aspect:") and len(value) > len("aspect:")):
            return value
        raise ValueError("expected overall, mean or aspect:NAME")

    @field_validator("ties")
    @classmethod
    def _ties(cls, value: str) -> str:
        parse_ties(value)
        return value

    @field_validator("test_fraction")
    @classmethod
    def _fraction(cls, value: float) -> float:
        if not 0 <= value < 1:
            raise ValueError("expected a share from 0 up to (not including) 1")
        return value

    def policy(self) -> Policy:
        """The settings as the pure selection wants them."""
        rule, margin = parse_ties(self.ties)
        return Policy(self.score, self.rejected, rule, margin, self.seed)
