"""What models cost, from the dated table that comes with genai-prices: nothing is looked up over the network."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

from zephyrctl.money import FREE, Price, Tokens


@dataclass(frozen=True)
class TieredPrice(Price):
    """A price that rises with the length of the prompt: beyond `start` input tokens, `above` holds for all of it."""

    start: int = 0
    above: Price = FREE

    def cost(self, tokens: Tokens, *, batch: bool = False) -> int:
        """What a reply costs, in uusd, by the tier that its prompt falls into."""
        if tokens.prompt > self.start:
            return self.above.cost(tokens, batch=batch)
        return super().cost(tokens, batch=batch)

    def worst(self, prompt_bound: int, completion_bound: int, *, batch: bool = False) -> int:
        """The most a call can cost, in uusd: in the dearest tier that its prompt could fall into."""
        below = super().worst(min(prompt_bound, self.start), completion_bound, batch=batch)
        if prompt_bound <= self.start:
            return below
        return max(below, self.above.worst(prompt_bound, completion_bound, batch=batch))


def known_price(vendor: str, model: str, on: date) -> Price | None:
    """What a vendor's model costs on a day, None where the table has no price for it."""
    import genai_prices
    from genai_prices.data_snapshot import get_snapshot

    try:
        _, found = get_snapshot().find_provider_model(model, None, vendor, None)
    except LookupError:
        return None
    listed = found.get_prices(datetime.combine(on, time(12), UTC))
    if listed.input_mtok is None or listed.output_mtok is None:
        return None
    source = f"genai-prices {genai_prices.__version__}, prices of {on}"
    starts = {start for name in _FIELDS.values() for start in _starts(getattr(listed, name))}
    return _tiered(listed, sorted(starts), source)


_FIELDS = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
}


def _tiered(listed: Any, starts: list[int], source: str, floor: int = 0) -> Price:
    """The prices from `floor` input tokens on, with the next tiers inside."""
    values = {name: _value(getattr(listed, field), floor) for name, field in _FIELDS.items()}
    if not starts:
        return Price(**values, source=source)  # type: ignore[arg-type]
    above = _tiered(listed, starts[1:], source, starts[0])
    return TieredPrice(**values, source=source, start=starts[0], above=above)  # type: ignore[arg-type]


def _starts(listed: Any) -> list[int]:
    return [tier.start for tier in getattr(listed, "tiers", ())]


def _value(listed: Any, floor: int) -> float | None:
    if listed is None:
        return None
    prices = [tier.price for tier in getattr(listed, "tiers", ()) if tier.start <= floor and floor > 0]
    return float(prices[-1] if prices else getattr(listed, "base", listed))
