"""Counts per model, for manifests and for the reader: who was asked, who served, what was not paid again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.providers.base import Answer, Model, Usage


@dataclass
class Tally:
    """What one model was asked and gave, since its caller was made.

    Tokens are those of all replies, replayed ones too.
    """

    provider: str
    model: str
    origin: str
    served: set[str] = field(default_factory=set)
    calls: int = 0
    replayed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, model: Model) -> Tally:
        """An empty tally for a model."""
        return cls(model.kind, model.label, model.origin)

    def answered(self, answer: Answer) -> None:
        """Count a reply."""
        if answer.replayed:
            self.replayed += 1
        else:
            self.calls += 1
        if answer.served_model:
            self.served.add(answer.served_model)
        usage = answer.usage or Usage(0, 0)
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.outcomes[answer.outcome] += 1

    def as_dict(self, *, in_doubt: int) -> dict[str, Any]:
        """Plain values, in a fixed order; `in_doubt` is counted by the ledger, over restarts too."""
        return {
            "provider": self.provider,
            "model": self.model,
            "origin": self.origin,
            "served": sorted(self.served),
            "calls": self.calls,
            "replayed": self.replayed,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "retries": self.retries,
            "in_doubt": in_doubt,
            "outcomes": dict(sorted(self.outcomes.items())),
            "failures": dict(sorted(self.failures.items())),
        }
