"""May this be spent? Consent is a budget (`max_usd` of the step or of the project) or `--yes`; without any, a small
estimate passes, a large one asks where somebody sits at the terminal, and stops elsewhere.

An estimate is the likely cost and can be wrong: what passed without consent is held to `FREE_TO_GO` all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from zephyrctl.asking.estimate import Estimate, told
from zephyrctl.errors import UsageError
from zephyrctl.money import UUSD, dollars

FREE_TO_GO = 5 * UUSD
"""What may be spent without consent, in uusd."""


def decide(likely: float, *, consent: bool) -> Literal["go", "ask"]:
    """`ask` where an estimate of `likely` uusd needs somebody's word first."""
    return "go" if consent or likely <= FREE_TO_GO else "ask"


def check_prices(estimate: Estimate, *, limit: bool) -> None:
    """Raises UsageError where a budget is to be kept and a price is not known: it could not be kept."""
    if limit and estimate.unpriced:
        names = ", ".join(estimate.unpriced)
        raise UsageError(
            f"the price of {names} is not known, so a limit in dollars cannot be kept",
            hint="--price in=…,out=… in US dollars per million tokens, or `price:` in zephyrctl.yaml",
        )


def agree(estimate: Estimate, stage: str, ask: Callable[[str], bool] | None, *, spent: int = 0) -> None:
    """Put the estimate to the person at the terminal; `spent` = what the step has cost so far, in uusd.

    Raises UsageError with the line to add where nobody is there, or where the answer is no.
    """
    cost = told(estimate.cost) + (f" on top of {dollars(spent)}" if spent else "")
    enough = math.ceil((spent + min(estimate.cost.high, 2 * estimate.cost.likely)) / UUSD)
    hint = f"--max-usd {enough} or --yes; --dry-run shows cheaper ways, --pilot N tells more for the price of N rows"
    if ask is None:
        raise UsageError(
            f"{stage} is estimated to cost {cost}; above {dollars(FREE_TO_GO)} it needs your consent",
            hint=hint,
        )
    if not ask(f"{stage} is estimated to cost {cost}. Go on?"):
        raise UsageError(f"nothing was asked: {stage} at {cost} was not agreed to", hint=hint)
