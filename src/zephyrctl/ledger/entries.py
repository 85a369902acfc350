"""What is written into the ledger and what comes back: requests, intents, replies, budgets, batches.

Amounts are millionths of a US dollar (uusd).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from zephyrctl.config import canonical
from zephyrctl.money import Tokens

KEY_VERSION = 1

EndState = Literal["error", "timeout", "in_doubt", "cancelled"]
"""How an attempt without a reply ended. `timeout` and `in_doubt` may have been billed."""


@dataclass(frozen=True)
class Request:
    """What is asked, of whom.

    Everything that makes the key, the key itself, and the model's name for people. `text` is the body's
    canonical JSON in UTF-8 where it is at hand (`Request.of` keeps it), so that it is not made twice.
    """

    key: str
    provider: str
    origin: str
    endpoint: str
    model: str
    body: Mapping[str, Any]
    draw: int
    text: bytes = field(default=b"", repr=False, compare=False)

    @classmethod
    def of(
        cls, *, provider: str, origin: str, endpoint: str, model: str, body: Mapping[str, Any], draw: int
    ) -> Request:
        """A request with its key; the body is turned into text once, for the key and for the ledger."""
        text = body_text(body)
        key = key_of(text, provider=provider, origin=origin, endpoint=endpoint, draw=draw)
        return cls(key, provider, origin, endpoint, model, body, draw, text)


def body_text(body: Mapping[str, Any]) -> bytes:
    """A body as the ledger keeps it: canonical JSON in UTF-8, lone surrogates as they are."""
    return canonical(body).encode("utf-8", "surrogatepass")


def key_of(text: bytes, *, provider: str, origin: str, endpoint: str, draw: int) -> str:
    """64 hex digits: the hash of the canonical JSON of all that makes a request, from its body's text."""
    # "body" sorts before the other names, so the canonical JSON of the whole is put together from two halves
    return hashlib.sha256(b'{"body":' + text + _tail(provider, origin, endpoint, draw)).hexdigest()


@lru_cache(maxsize=1024)
def _tail(provider: str, origin: str, endpoint: str, draw: int) -> bytes:
    rest = {
        "draw": draw,
        "endpoint": endpoint,
        "key_version": KEY_VERSION,
        "origin": origin,
        "provider": provider,
    }
    return b"," + canonical(rest)[1:].encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class StoredReply:
    """A reply as it arrived. `tokens` where the provider told; `fingerprint` of the system that served it."""

    body: bytes
    outcome: str
    finish_reason: str
    tokens: Tokens | None
    served_model: str
    fingerprint: str = ""


@dataclass(frozen=True)
class Run:
    """One step's work, over all its processes and restarts: `id` is the head of the step key."""

    id: str
    stage: str = ""
    name: str = ""


@dataclass(frozen=True)
class Budget:
    """What may be spent, in uusd; None = no limit. `step` limits one run, `project` the whole ledger."""

    step: int | None = None
    project: int | None = None
    agreed: bool = True
    """Whether somebody set the limit of the step; False = it is what may be spent without consent."""
    parts: int = 1
    """How many parts share what was set; the limits here are one share."""
    closable: bool = True
    """Whether the step can be closed from what is finished."""

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self.step is not None or self.project is not None


@dataclass(frozen=True)
class Intent:
    """A request about to be sent and the most it can cost; `reserve` None = its price is not known."""

    request: Request
    reserve: int | None = None


@dataclass(frozen=True)
class Leased:
    """Another living process is asking this very request; look again in a moment."""

    key: str
    host: str
    pid: int


@dataclass(frozen=True)
class NoRoom:
    """The reservation does not fit. `free` = what the limit leaves after `spent` (settled and in doubt) and
    `reserved` (calls in flight)."""

    scope: Literal["step", "project"]
    limit: int
    spent: int
    reserved: int
    need: int

    @property
    def free(self) -> int:
        """What is left for further reservations."""
        return max(0, self.limit - self.spent - self.reserved)

    @property
    def hopeless(self) -> bool:
        """Whether it would not fit even when everything in flight cost nothing."""
        return self.spent + self.need > self.limit


@dataclass(frozen=True)
class InBatch:
    """The request is part of a batch that is still open at the provider."""

    key: str
    batch: str


Begun = int | StoredReply | Leased | NoRoom | InBatch
"""An attempt's number (send it now), the reply that is already here, or why it cannot be sent at this moment."""


@dataclass(frozen=True)
class Finished:
    """A reply that arrived for an attempt; `cost` None = not known: it then counts at its reservation."""

    attempt: int
    key: str
    reply: StoredReply
    cost: int | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class Ended:
    """An attempt that ended without a reply."""

    attempt: int
    state: EndState
    error_class: str
    status: int | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class Spend:
    """Money of one run, or of the whole ledger: paid, reserved for calls in flight, and in doubt."""

    settled: int = 0
    reserved: int = 0
    doubt: int = 0

    @property
    def spent(self) -> int:
        """What counts against a limit for good."""
        return self.settled + self.doubt


@dataclass(frozen=True)
class Stats:
    """What one run did: attempts by how they ended, and tokens of the replies it received."""

    states: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def calls(self) -> int:
        """Replies received."""
        return self.states.get("ok", 0)

    @property
    def in_doubt(self) -> int:
        """Attempts that may have been billed although no reply arrived."""
        return self.states.get("in_doubt", 0) + self.states.get("timeout", 0)


@dataclass(frozen=True)
class Recovered:
    """Attempts found in flight whose process is gone, and what they may have cost."""

    calls: int = 0
    uusd: int = 0


@dataclass(frozen=True)
class Batch:
    """A batch of requests handed to a provider.

    `id` is ours and known before anything is sent; `remote_id` is the provider's, None until it told. `state`:
    building, open, done, failed. `keys` and `created` (Unix time) are the ledger's to fill in.
    """

    id: str
    provider: str
    origin: str
    model: str
    run_id: str
    state: str
    keys: Sequence[str] = field(default_factory=tuple)
    remote_id: str | None = None
    created: float = 0.0
