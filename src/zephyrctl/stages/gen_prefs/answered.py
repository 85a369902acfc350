"""A prompt on its way to a feedback row: its completions, and what becomes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat
from zephyrctl.config import canonical
from zephyrctl.providers.base import UNPAID, Answer, Ask, Failure
from zephyrctl.records import Completion, FeedbackRow

AskAll = Callable[[Sequence[tuple[Seat, Ask]], str], Sequence[Answer | Failure]]
"""Asks several models: (who, what) pairs and a task name in, replies in the same order out."""


@dataclass
class Answered:
    """A prompt's completions in the order of the pool, and why others are missing; `unpaid` = some are not paid
    for."""

    item: Seed
    kept: list[Completion] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    unpaid: bool = False

    def leave_out(self, who: str, reason: str, detail: str) -> None:
        """Counts a completion of `who` that cannot be kept."""
        self.unpaid = self.unpaid or reason == UNPAID
        self.reasons[reason] += 1
        self.lost.append(f"{who} {reason} ({detail})")


@dataclass(frozen=True)
class LeftOut:
    """A prompt that was sorted out before anything was asked; `row` is the reject as the store keeps it."""

    item: Seed
    row: Mapping[str, Any]

    def as_row(self) -> Mapping[str, Any]:
        """The reject as the store keeps it."""
        return self.row


@dataclass(frozen=True)
class Unfinished:
    """A prompt some of whose calls are not paid for, in a run that only replays the ledger."""

    item: Seed

    def as_row(self) -> dict[str, str]:
        """The reject as the store keeps it."""
        return reject(self.item, UNPAID, "not all of its calls are in the ledger")


@dataclass(frozen=True)
class TooFew:
    """A prompt with fewer than two completions, which is nothing to compare."""

    item: Seed
    detail: str

    def as_row(self) -> dict[str, str]:
        """The reject as the store keeps it."""
        return reject(self.item, "too_few_completions", self.detail)


Outcome = FeedbackRow | TooFew | Unfinished
"""What becomes of a prompt that was asked."""


def reject(item: Seed, reason: str, detail: str) -> dict[str, str]:
    """A prompt that gives no row, as the store keeps it."""
    row = {"prompt_id": item.row.prompt_id, "prompt": [m.model_dump() for m in item.row.prompt]}
    return {"where": item.where, "reason": reason, "detail": detail, "row": canonical(row)}
