"""How calls of one step are bounded: number in flight, time, rates, retries and money."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from zephyrctl.errors import UsageError
from zephyrctl.ledger.entries import Budget
from zephyrctl.providers.calling.retry import Retry


@dataclass(frozen=True)
class CallSettings:
    """The bounds of a caller. Times in seconds.

    `concurrency` = calls in flight at most to one model; `deadline` = per attempt; `rpm` and `tpm` = requests and
    tokens per minute to one model (None = no limit of ours); `grace` = for calls in flight when the work is to
    stop; `breaker` = failures in a row that mean the provider is down (None = 3 per call in flight, at least 8);
    `in_doubt` = what to do with calls that were in flight when an earlier process died; `redraw` = which set of
    draws; `replay` = nothing is sent.
    """

    concurrency: int = 32
    deadline: float = 600.0
    rpm: int | None = None
    tpm: int | None = None
    retry: Retry = field(default_factory=Retry)
    grace: float = 10.0
    breaker: int | None = None
    budget: Budget = field(default_factory=Budget)
    mode: Literal["online", "batch", "auto"] = "online"
    in_doubt: Literal["resend", "stop"] = "resend"
    redraw: int = 0
    replay: bool = False

    def __post_init__(self) -> None:
        for name in ("concurrency", "rpm", "tpm"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")

    @property
    def patience(self) -> int:
        """Failures in a row after which a model counts as down."""
        return self.breaker or max(8, 3 * self.concurrency)
