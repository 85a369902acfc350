"""What a provider must know of the project it works in: endpoints, prices, and what a request may leave out."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

from zephyrctl.money import Price
from zephyrctl.project import Project


@dataclass(frozen=True)
class Site:
    """The surroundings of a provider.

    `price` = as given on the command line, for models without a known one; `may_drop` = settings that are left out
    for a model that refuses them; `effort` = reasoning effort for models that have one; `replay_only` = nothing will
    be sent, so that a retired model may be named; `today` decides what is retired.
    """

    project: Project = field(default_factory=lambda: Project.model_validate({}))
    price: Price | None = None
    may_drop: frozenset[str] = frozenset()
    effort: str | None = None
    replay_only: bool = False
    today: date = field(default_factory=date.today)
