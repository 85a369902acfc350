"""What each round of refinement adds, for people and for the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.asking.seats import FAILURES
from zephyrctl.events import Emit, Table, Warning_
from zephyrctl.providers.base import UNPAID

_OWN_COLUMN = ("not_novel", "unchanged", "duplicate")
_FEW = 0.1


@dataclass
class RoundTally:
    """One round over all chains: pairs tried, kept, and dropped by reason; round 0 answers the seeds themselves."""

    number: int
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    asked_words: int = 0
    answered_words: int = 0

    @property
    def tried(self) -> int:
        """Pairs that were settled, one way or the other."""
        return self.kept + self.dropped.total() - self.dropped[UNPAID]

    def keep(self, instruction: str, response: str) -> None:
        """Counts one pair that is kept."""
        self.kept += 1
        self.asked_words += len(instruction.split())
        self.answered_words += len(response.split())

    def as_dict(self) -> dict[str, Any]:
        """For the manifest; means are over kept pairs, None where there are none."""
        failed = sum(self.dropped[reason] for reason in FAILURES)
        own = {reason: self.dropped[reason] for reason in _OWN_COLUMN}
        return {
            "round": self.number,
            "tried": self.tried,
            "kept": self.kept,
            **own,
            "filtered": self.tried - self.kept - failed - sum(own.values()),
            "failed": failed,
            "instruction_words": self._mean(self.asked_words),
            "response_words": self._mean(self.answered_words),
        }

    def _mean(self, words: int) -> float | None:
        return round(words / self.kept, 1) if self.kept else None


def tell_rounds(emit: Emit, tallies: Sequence[RoundTally], *, finished: bool) -> list[dict[str, Any]]:
    """Shows what each round came to, warns of the first that adds few pairs, and gives the figures for the manifest.

    `finished` = every pair is settled, so that few pairs mean something.
    """
    bodies = [tally.as_dict() for tally in tallies]
    names = {"instruction_words": "words asked", "response_words": "words answered", "not_novel": "not novel"}
    columns = tuple(names.get(name, name) for name in bodies[0])
    cells = [tuple("-" if value is None else f"{value:,}" for value in body.values()) for body in bodies]
    emit(Table("what each round adds", columns, tuple(cells)))
    chains = tallies[0].tried
    few = next((t for t in tallies[1:] if finished and t.kept < _FEW * chains), None)
    if few is not None:
        emit(
            Warning_(
                f"round {few.number} adds {few.kept} pairs to {chains} chains: --rounds {few.number - 1} makes nearly "
                "the same data with fewer calls"
            )
        )
    return bodies
