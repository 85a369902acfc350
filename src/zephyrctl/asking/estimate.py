"""What calls will take, before any is made: numbers of calls, tokens and money, as low, likely and high. Pure.

Amounts are millionths of a US dollar. Tokens of a text are guessed from its bytes: four to a token is likely, six is
low, two is high; what a tokenizer makes of it lies between for nearly all text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zephyrctl.events import Table
from zephyrctl.money import UUSD, Price, Tokens, dollars

_LOW, _LIKELY, _HIGH = 6, 4, 2
_MESSAGE_TOKENS = 8
"""What an API adds to each message, at most."""

Held = Mapping[tuple[str, str], int]
"""Replies that are there already, by (model, purpose)."""


@dataclass(frozen=True)
class Range:
    """A number that is not known yet."""

    low: float = 0.0
    likely: float = 0.0
    high: float = 0.0

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.likely * factor, self.high * factor)

    def as_dict(self) -> dict[str, int]:
        """In whole numbers, rounded up, for documents."""
        return {name: math.ceil(getattr(self, name)) for name in ("low", "likely", "high")}


def size(text: str) -> int:
    """The bytes of a text."""
    return len(text.encode("utf-8", "surrogatepass"))


def text_tokens(size: int, messages: int = 1) -> Range:
    """The tokens of `size` bytes of text in so many messages."""
    return Range(
        size / _LOW,
        size / _LIKELY + messages * _MESSAGE_TOKENS / 2,
        size / _HIGH + messages * _MESSAGE_TOKENS,
    )


@dataclass(frozen=True)
class Part:
    """Calls of one kind to one model.

    `calls` are expected, `most` is what they can become (judgements asked again); `prompt` and `reply` are tokens
    of one call on average, and `reply.high` is what the request allows. `price` None = not known. `role` is the
    model's place in the stage (teacher, pool, judge, model); `bulk` = its provider takes batches, `batch` = they
    are used.
    """

    role: str
    who: str
    purpose: str
    calls: int
    most: int
    prompt: Range
    reply: Range
    price: Price | None
    bulk: bool = False
    batch: bool = False

    @property
    def prompt_tokens(self) -> Range:
        """Input tokens of all calls."""
        return self._over_calls(self.prompt)

    @property
    def reply_tokens(self) -> Range:
        """Output tokens of all calls."""
        return self._over_calls(self.reply)

    @property
    def cost(self) -> Range | None:
        """What all calls cost, in uusd; None without a price. High counts no discount: stragglers of a batch are
        finished online, and nothing may be read from a prompt cache."""
        if self.price is None:
            return None
        low, likely = (
            self.price.cost(Tokens(math.ceil(prompt), math.ceil(reply)), batch=self.batch) * self.calls
            for prompt, reply in ((self.prompt.low, self.reply.low), (self.prompt.likely, self.reply.likely))
        )
        high = self.price.worst(math.ceil(self.prompt.high), math.ceil(self.reply.high)) * self.most
        return Range(low, likely, high)

    @property
    def free(self) -> bool:
        """Whether it is known to cost nothing."""
        return self.price is not None and self.price.worst(1, 1) == 0

    def rest(self, held: int) -> Part:
        """What is left of it when `held` replies are there."""
        calls = max(0, self.calls - held)
        most = math.ceil(calls * self.most / self.calls) if self.calls else 0
        return replace(self, calls=calls, most=most)

    def _over_calls(self, each: Range) -> Range:
        return Range(each.low * self.calls, each.likely * self.calls, each.high * self.most)


@dataclass(frozen=True)
class Estimate:
    """All calls of a stage."""

    parts: tuple[Part, ...]

    @property
    def calls(self) -> int:
        """Calls expected."""
        return sum(part.calls for part in self.parts)

    @property
    def most(self) -> int:
        """Calls at most, without retries of failed ones."""
        return sum(part.most for part in self.parts)

    @property
    def prompt_tokens(self) -> Range:
        """Input tokens."""
        return sum((part.prompt_tokens for part in self.parts), Range())

    @property
    def reply_tokens(self) -> Range:
        """Output tokens."""
        return sum((part.reply_tokens for part in self.parts), Range())

    @property
    def cost(self) -> Range:
        """What the parts with a known price cost, in uusd."""
        return sum((part.cost for part in self.parts if part.cost is not None), Range())

    @property
    def unpriced(self) -> list[str]:
        """The models whose price is not known."""
        return list(dict.fromkeys(part.who for part in self.parts if part.price is None and part.most))

    @property
    def free(self) -> bool:
        """Whether all of it is known to cost nothing."""
        return all(part.free or not part.most for part in self.parts)

    def rest(self, held: Held) -> Estimate:
        """What is left when the replies in `held` are there; each of them is one part's only."""
        there = dict(held)
        parts = []
        for part in self.parts:
            key = part.who, part.purpose
            mine = min(part.calls, there.get(key, 0))
            there[key] = there.get(key, 0) - mine
            parts.append(part.rest(mine))
        return Estimate(tuple(parts))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; money in US dollars, null where a price is not known."""
        return {**_numbers(self), "parts": [_numbers(part) for part in self.parts]}


def _numbers(item: Part | Estimate) -> dict[str, Any]:
    names = {"model": item.who, "for": item.purpose, "role": item.role} if isinstance(item, Part) else {}
    unknown = item.cost is None if isinstance(item, Part) else bool(item.unpriced)
    return {
        **names,
        "calls": {"likely": item.calls, "most": item.most},
        "input_tokens": item.prompt_tokens.as_dict(),
        "output_tokens": item.reply_tokens.as_dict(),
        "usd": None if unknown or item.cost is None else usd(item.cost),
    }


def usd(cost: Range) -> dict[str, float]:
    """An amount in dollars, for documents."""
    return {name: round(getattr(cost, name) / UUSD, 6) for name in ("low", "likely", "high")}


def told(cost: Range) -> str:
    """An amount for people: `$41.20 ($18.00 to $120.00)`."""
    if cost.high == 0:
        return "free"
    return f"{dollars(cost.likely)} ({dollars(cost.low)} to {dollars(cost.high)})"


def table(estimate: Estimate, title: str) -> Table:
    """The parts and their sum."""
    columns = ("asked", "for", "calls", "input tokens", "output tokens", "cost, likely (low to high)")
    rows = [(part.who, part.purpose, *_cells(part)) for part in estimate.parts]
    if len(rows) > 1:
        rows.append(("all", "", *_cells(estimate)))
    return Table(title, columns, tuple(rows))


def _cells(item: Part | Estimate) -> tuple[str, str, str, str]:
    calls = f"{item.calls:,}" + (f" (at most {item.most:,})" if item.most > item.calls else "")
    cost = "price not known" if item.cost is None else told(item.cost)
    if isinstance(item, Estimate) and item.unpriced:
        cost = "price not known" if item.cost.high == 0 else f"{cost} and what has no known price"
    return calls, count(item.prompt_tokens.likely), count(item.reply_tokens.likely), cost


def count(number: float) -> str:
    """A large number for people: `812`, `61.4k`, `1.2M`."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= unit:
            return f"{number / (1e3 if letter == 'k' else unit):.1f}{letter}"
    return f"{math.ceil(number):,}"


@dataclass(frozen=True)
class Rung:
    """Another way to do the work: what changes, how to ask for it, and what it would take."""

    what: str
    how: str
    estimate: Estimate


@dataclass(frozen=True)
class Fewer:
    """A way to ask less: what is left out, by the first word of its purpose (`aspect` and with it `aspect repair`), and
    the setting that does it."""

    what: str
    how: str
    without: frozenset[str]


def ladder(
    estimate: Estimate,
    cheaper: Sequence[tuple[str, Price]],
    *,
    role: str,
    flag: str,
    fewer: Sequence[Fewer] = (),
) -> list[Rung]:
    """This plan, the same with cheaper models in place of `role`, with fewer calls, and in batches.

    Ways that change nothing are left out; `cheaper` pairs the name to type after `flag` with its price.
    """
    rungs = [Rung("this plan", "", estimate)]
    for name, price in cheaper:
        parts = tuple(
            replace(part, who=name, price=price) if part.role == role else part for part in estimate.parts
        )
        rungs.append(Rung(f"{name} in place of the {role}", f"{flag} {name}", Estimate(parts)))
    for way in fewer:
        parts = tuple(part for part in estimate.parts if part.purpose.split()[0] not in way.without)
        if parts != estimate.parts:
            rungs.append(Rung(way.what, way.how, Estimate(parts)))
    if any(_saves(part) for part in estimate.parts):
        parts = tuple(replace(part, batch=part.bulk) for part in estimate.parts)
        rungs.append(Rung("in batches, within a day", "--mode batch", Estimate(parts)))
    return rungs


def _saves(part: Part) -> bool:
    return part.bulk and not part.batch and part.price is not None and part.price.batch_factor < 1


def ladder_table(rungs: Sequence[Rung]) -> Table:
    """The ladder for people."""
    rows = tuple((r.what, f"{r.estimate.calls:,}", _cells(r.estimate)[3], r.how) for r in rungs)
    return Table("ways to do it", ("", "calls", "cost, likely (low to high)", "type"), rows)
