"""What lies around an estimate: cheaper models in place of the teacher, and how much training the rows will make."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from zephyrctl.editions.load import load
from zephyrctl.editions.resolve import DEFAULT, SANDBOX

if TYPE_CHECKING:
    from datetime import date

    from zephyrctl.artifacts.step import Work
    from zephyrctl.modelspec import ModelSpec
    from zephyrctl.money import Price

LINE_UP: dict[str, tuple[str, ...]] = {
    "openai": ("gpt-6.1-sol", "gpt-6.1-terra", "gpt-6-luna"),
    "anthropic": ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"),
}
"""Current models of each vendor, dearest first, that the ladder shows."""
_OF_THE_SAME, _OF_ANOTHER = 2, 1


def cheaper(spec: ModelSpec, price: Price | None, on: date) -> list[tuple[str, Price]]:
    """Up to two cheaper models of the teacher's vendor and one of another, with their prices on a day.

    None for a model that is no vendor's, or whose price is not known.
    """
    if spec.where not in LINE_UP or price is None:
        return []
    found: list[tuple[str, Price]] = []
    for vendor in (spec.where, *(v for v in LINE_UP if v != spec.where)):
        below = [(name, p) for name, p in _priced(vendor, on) if _cost(p) < _cost(price)]
        found += below[: _OF_THE_SAME if vendor == spec.where else _OF_ANOTHER]
    return found


def _priced(vendor: str, on: date) -> list[tuple[str, Price]]:
    from zephyrctl.providers.prices import known_price

    priced = [(name, known_price(vendor, name, on)) for name in LINE_UP[vendor]]
    return [(name, price) for name, price in priced if price is not None]


def _cost(price: Price) -> float:
    """One number to order models by: as much output as input."""
    return price.input + price.output


def optimiser_steps(work: Work, stage: str, rows: float, tokens: float, world: str) -> int:
    """How many steps `rows` training rows of `tokens` tokens each make in `sft` or `dpo`, with the settings of the
    edition and of the project; packed rows are counted by their tokens."""
    name = (work.edition or (SANDBOX if world == "sandbox" else DEFAULT)).partition(" + ")[0]
    own = {str(key).replace("-", "_"): value for key, value in work.project.stages.get(stage, {}).items()}
    section: dict[str, Any] = {**load(name).sections.get(stage, {}), **own}
    if section.get("packing"):
        rows = rows * tokens / float(section["max_length"])
    per_epoch = math.ceil(rows / int(section.get("batch_size", 32)))
    return math.ceil(float(section.get("epochs", 1)) * per_epoch)
