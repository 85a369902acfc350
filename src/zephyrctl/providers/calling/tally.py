"""Counts per model, for manifests and for the reader: who was asked, who served, what it cost, what was not paid
again."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.money import UUSD, Tokens
from zephyrctl.providers.base import Answer, Model

_NONE = Tokens(0, 0)


@dataclass
class Tally:
    """What one model was asked and gave, since its caller was made.

    Tokens are those of all replies, replayed ones too. `paid` = what fresh replies cost, `saved` = what the
    replayed ones would have cost, both in uusd and only where the price is known (`priced`).
    """

    provider: str
    model: str
    origin: str
    priced: bool = True
    dropped: tuple[str, ...] = ()
    served: set[str] = field(default_factory=set)
    calls: int = 0
    replayed: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0
    paid: int = 0
    saved: int = 0
    retries: int = 0
    limited: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    """What the endpoint was asked for and left out, by kind (see `zephyrctl.providers.calling.ignored`)."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, model: Model) -> Tally:
        """An empty tally for a model."""
        return cls(model.kind, model.label, model.origin, priced=model.price is not None)

    def answered(self, answer: Answer, cost: int) -> None:
        """Count a reply and what it cost, or would have cost where it is replayed (uusd)."""
        tokens = answer.tokens or _NONE
        with self.lock:
            if answer.replayed:
                self.replayed += 1
                self.saved += cost
            else:
                self.calls += 1
                self.paid += cost
            if answer.served_model:
                self.served.add(answer.served_model)
            self.prompt += tokens.prompt
            self.cached += tokens.cached
            self.completion += tokens.completion
            self.reasoning += tokens.reasoning
            self.outcomes[answer.outcome] += 1

    def failed(self, reason: str) -> None:
        """Count a row that got no reply."""
        with self.lock:
            self.failures[reason] += 1

    def as_dict(self, *, in_doubt: tuple[int, int]) -> dict[str, Any]:
        """Plain values, in a fixed order; `in_doubt` (calls, uusd) is counted by the ledger, over restarts too."""
        return {
            "provider": self.provider,
            "model": self.model,
            "origin": self.origin,
            "served": sorted(self.served),
            "calls": self.calls,
            "replayed": self.replayed,
            "tokens": {
                "prompt": self.prompt,
                "cached": self.cached,
                "completion": self.completion,
                "reasoning": self.reasoning,
            },
            "cost_usd": self.paid / UUSD if self.priced else None,
            "saved_usd": self.saved / UUSD if self.priced else None,
            "in_doubt": {"calls": in_doubt[0], "usd": in_doubt[1] / UUSD},
            "retries": self.retries,
            "outcomes": dict(sorted(self.outcomes.items())),
            "failures": dict(sorted(self.failures.items())),
            "dropped": list(self.dropped),
            "ignored": dict(sorted(self.ignored.items())),
        }
