"""What every stage that asks models can be asked itself: limits, money, and how replies are fetched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from zephyrctl.asking.shards import Shard
from zephyrctl.config import StageConfig, runtime

Setting = Literal[
    "temperature", "top_p", "seed", "stop", "logprobs", "schema", "effort", "system", "max_tokens"
]


class AskingConfig(StageConfig):
    """The settings that gen-sft, gen-prefs and eval share."""

    may_drop: list[Setting] = Field(default_factory=list)
    """Settings that are left out, and recorded, for a model that refuses them; any other refused setting ends with
    exit 2."""
    effort: str | None = None
    """Reasoning effort asked of models that have one; unset = the provider's own."""
    redraw: int = Field(0, ge=0)
    """Which set of draws: 0 is replayed from the ledger, another number draws anew and pays."""
    shard: str | None = None
    """`i/n`: this process takes the i-th of n parts of the prompts (1-based), by hash of the prompt."""
    concurrency: int = runtime(32, ge=1)
    """Calls in flight at most to one model; below it the number adapts to what the endpoint bears."""
    rpm: int | None = runtime(None, ge=1)
    """Requests per minute to each model at most."""
    tpm: int | None = runtime(None, ge=1)
    """Tokens per minute to each model at most, input and output."""
    deadline: float = runtime(600.0, gt=0)
    """Seconds until one attempt is given up."""
    max_wait: float = runtime(600.0, ge=0)
    """Seconds that one row waits for rate limits in all before the stage gives up for now (exit 75)."""
    mode: Literal["online", "batch", "auto"] = runtime("online")
    """One request at a time, the provider's batch API (half price, up to a day), or a probe and then a batch."""
    max_usd: float | None = runtime(None, ge=0, allow_inf_nan=False)
    """What this step may spend, over all its runs and processes; 0 = replies of the ledger only."""
    price: str | None = runtime(None)
    """US dollars per million tokens, `in=…,out=…[,cached=…]`, for models without a known price."""
    pilot: int | None = runtime(None, ge=1)
    """Pay for that many rows, tell what all of them would cost, and stop."""
    accept_partial: bool = runtime(False)
    """Close the artifact from the rows that are finished; nothing is asked."""
    in_doubt: Literal["resend", "stop"] = runtime("resend")
    """What to do with calls that were in flight when an earlier process died."""

    @field_validator("shard")
    @classmethod
    def _shard(cls, value: str | None) -> str | None:
        if value is None:
            return None
        shard = Shard.read(value)
        if shard is None:
            raise ValueError(f"'{value}' is not i/n with 1 <= i <= n")
        return str(shard)
