"""What lies around an estimate: cheaper models in place of the teacher, and how much training the rows will make."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from zephyrctl.asking.line_up import line_up
from zephyrctl.editions.load import load
from zephyrctl.editions.resolve import DEFAULT, SANDBOX

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from zephyrctl.artifacts.step import Work
    from zephyrctl.modelspec import ModelSpec
    from zephyrctl.money import Price

_OF_THE_SAME, _OF_ANOTHER = 2, 1


def cheaper(spec: ModelSpec, price: Price | None, on: date) -> list[tuple[str, Price]]:
    """Up to two cheaper models of the teacher's vendor and one of another, with their prices on a day.

    None for a model that is no vendor's, or whose price is not known.
    """
    vendors = line_up().vendors
    if spec.where not in vendors or price is None:
        return []
    found: list[tuple[str, Price]] = []
    for vendor in (spec.where, *(v for v in vendors if v != spec.where)):
        below = _below(_cost(price), vendors[vendor], vendor, on)
        found += below[: _OF_THE_SAME if vendor == spec.where else _OF_ANOTHER]
    return found


def _below(cost: float, names: Sequence[str], vendor: str, on: date) -> list[tuple[str, Price]]:
    """The models that cost less than `cost`, each less than the one before it."""
    from zephyrctl.providers.prices import known_price

    found: list[tuple[str, Price]] = []
    for name in names:
        price = known_price(vendor, name, on)
        if price is not None and _cost(price) < cost:
            found.append((name, price))
            cost = _cost(price)
    return found


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
