"""What is counted while prompts are answered and rated, so that the sums add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from zephyrctl.judges.base import NOT_APPLICABLE, Parsed


@dataclass
class Tally:
    """Counts that add up: asked = kept + left out (by reason); ratings = rated + not applicable + unscored
    (by reason). `principles` counts the completions kept by the principle that they were asked for with."""

    completions_asked: int = 0
    completions_kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    principles: Counter[str] = field(default_factory=Counter)
    ratings_asked: int = 0
    rated: int = 0
    not_applicable: int = 0
    unscored: Counter[str] = field(default_factory=Counter)
    judge_calls: int = 0
    cut_judgements: int = 0
    """Judgements whose first reply was cut off at its limit, mended or not."""
    repaired: int = 0
    """Judgements followed by a repair turn; `judge_calls` counts that turn too."""
    repaired_ok: int = 0
    """Those of them that could be read whole afterwards."""

    @property
    def judgements(self) -> int:
        """How many judgements were asked for, repair turns not counted."""
        return self.judge_calls - self.repaired

    def count(self, parsed: Parsed) -> None:
        """Counts one rating."""
        self.ratings_asked += 1
        if parsed.value is not None:
            self.rated += 1
        elif parsed.reason == NOT_APPLICABLE:
            self.not_applicable += 1
        else:
            self.unscored[(parsed.reason or "unreadable").split(":")[0]] += 1

    def add(self, other: Tally) -> None:
        """Takes over the counts of another one."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
