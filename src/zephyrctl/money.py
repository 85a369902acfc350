"""Money: prices in US dollars per million tokens, amounts in whole millionths of a dollar (`uusd`).

A token at one dollar per million costs one millionth of a dollar, so `tokens * dollars per million` is an amount in
uusd. Amounts are rounded up: a budget is never missed by rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zephyrctl.errors import UsageError

UUSD = 1_000_000
"""Millionths in a dollar."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of one reply as the provider counted them.

    `prompt` counts all input, `cached` and `cache_write` are the parts of it read from or written to the
    provider's prompt cache; `completion` counts all output, `reasoning` is the hidden part of it.
    """

    prompt: int
    completion: int
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens.

    None for `cached_input` or `cache_write` = as `input`; `source` says where it was read.
    """

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    batch_factor: float = 0.5
    """What a batch call costs as a share of an online one; 1 where there is no discount."""
    source: str = ""

    def cost(self, tokens: Tokens, *, batch: bool = False) -> int:
        """What a reply costs, in uusd, rounded up."""
        plain = max(0, tokens.prompt - tokens.cached - tokens.cache_write)
        dollars = (
            plain * self.input
            + tokens.cached * _or(self.cached_input, self.input)
            + tokens.cache_write * _or(self.cache_write, self.input)
            + tokens.completion * self.output
        )
        return math.ceil(round(dollars * (self.batch_factor if batch else 1.0), 6))

    def worst(self, prompt_bound: int, completion_bound: int, *, batch: bool = False) -> int:
        """The most a call can cost, in uusd: no input cached, the dearest kind of input, output to its limit."""
        dearest = max(self.input, self.cached_input or 0.0, self.cache_write or 0.0)
        dollars = prompt_bound * dearest + completion_bound * self.output
        return math.ceil(round(dollars * (self.batch_factor if batch else 1.0), 6))


FREE = Price(0.0, 0.0, source="free")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def to_uusd(dollars: float) -> int:
    """Dollars as uusd, rounded down: a limit is never widened by rounding."""
    return math.floor(round(dollars * UUSD, 6))


def dollars(uusd: int | float) -> str:
    """An amount for people: `$1,234.50`, `$0.0042`."""
    value = uusd / UUSD
    if value == 0 or abs(value) >= 0.995:
        return f"${value:,.2f}"
    return f"${value:.4f}" if abs(value) >= 0.00005 else f"${value:.6f}"


def parse_price(text: str) -> Price:
    """`in=3,out=15` or `in=3,out=15,cached=0.3,batch=0.5`, in dollars per million tokens.

    Raises UsageError showing the form.
    """
    hint = "for example --price in=3,out=15,cached=0.3 (US dollars per million tokens)"
    names = {"in": "input", "out": "output", "cached": "cached_input", "batch": "batch_factor"}
    values: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        if not equals or name not in names:
            raise UsageError(f"a price is in=…,out=…[,cached=…][,batch=…], got {text!r}", hint=hint)
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not math.isfinite(value) or value < 0:
            raise UsageError(f"price {name}={number!r}: a number of dollars, 0 or more", hint=hint)
        values[names[name]] = value
    if "input" not in values or "output" not in values:
        raise UsageError(f"a price needs in= and out=, got {text!r}", hint=hint)
    return Price(**values, source="--price")
