"""The port that every model stands behind: what is asked, what comes back, and how an attempt can fail."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from zephyrctl.records import Message

Outcome = Literal["text", "empty", "length", "refusal", "filtered"]
World = Literal["sandbox", "real"]


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. `max_tokens` counts answer tokens; `seed` None = the provider's own."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int | None = None


@dataclass(frozen=True)
class Ask:
    """One question to one model.

    `draw` 0, 1, 2 … are separate, repeatable answers; `purpose` is for people only.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    draw: int = 0
    purpose: str = ""


@dataclass(frozen=True)
class Usage:
    """Tokens as the provider counted them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Reading:
    """What the bytes of one reply say.

    Every outcome other than `text` is final: paid for, stored, not asked again.
    """

    text: str
    outcome: Outcome
    finish_reason: str
    served_model: str
    usage: Usage | None = None


@dataclass(frozen=True)
class Answer:
    """A reply that is in the ledger. `replayed` = it was there before and cost nothing now."""

    text: str
    outcome: Outcome
    finish_reason: str
    served_model: str
    usage: Usage | None
    key: str
    replayed: bool


@dataclass(frozen=True)
class Failure:
    """No reply after bounded retries. Never data: a stage counts it or drops the row with this reason."""

    reason: str
    detail: str
    key: str


class Retryable(Exception):
    """One attempt failed in a way that another may not.

    `reason`: rate_limit, server_error, transport, timeout, conflict, too_large or bad_envelope. `retry_after`
    is in seconds, as the server asked. `maybe_billed` = the request may have been worked on, so it counts as
    in doubt.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        request_id: str | None = None,
        maybe_billed: bool = False,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after
        self.status = status
        self.request_id = request_id
        self.maybe_billed = maybe_billed


class Rejected(Exception):
    """The provider refuses this request for good (a 4xx status): the row fails, the others go on."""

    def __init__(
        self, reason: str, detail: str, *, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.status = status
        self.request_id = request_id


class Model(Protocol):
    """What online and batch providers share.

    `label` is what rows and manifests call the model, `origin` and `endpoint` are where it is, `world` keeps
    sandbox and real data apart.
    """

    @property
    def kind(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def world(self) -> World: ...

    def wire(self, ask: Ask) -> dict[str, Any]:
        """The whole request body; with origin, endpoint and draw it makes the ledger's key."""
        ...

    def read(self, raw: bytes) -> Reading:
        """What a reply says, from its bytes alone.

        Raises Retryable("bad_envelope") for bytes that are no reply.
        """
        ...


class Provider(Model, Protocol):
    """A model that is asked one request at a time, many at once."""

    async def send(self, body: Mapping[str, Any]) -> bytes:
        """One attempt, without retries. Raises AuthError, UsageError, Retryable or Rejected."""
        ...


@runtime_checkable
class BatchProvider(Model, Protocol):
    """A model on this machine that answers `max_batch` requests together."""

    @property
    def max_batch(self) -> int: ...

    def send_batch(self, bodies: Sequence[dict[str, Any]]) -> list[bytes]:
        """The replies, in the order of the bodies."""
        ...


AnyProvider = Provider | BatchProvider


@runtime_checkable
class Closable(Protocol):
    """A provider that holds connections of one event loop."""

    async def aclose(self) -> None:
        """Let the connections go; the next `send` opens new ones."""
        ...


def wire_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the plain dicts that request bodies hold."""
    return [{"role": m.role, "content": m.content} for m in messages]


def json_object(raw: bytes) -> dict[str, Any]:
    """A reply's JSON object.

    Raises Retryable("bad_envelope") for HTML, cut JSON, bad UTF-8, `null`, lists, `{}`.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        head = raw[:60].decode("utf-8", "replace").strip()
        raise Retryable("bad_envelope", f"the reply is not JSON (it begins {head!r})") from None
    if not isinstance(value, dict) or not value:
        raise Retryable(
            "bad_envelope", f"the reply is not a JSON object with content (got {str(value)[:20]!r})"
        )
    return value


def clean_text(text: str) -> str:
    """Text that can be stored as UTF-8: a lone surrogate becomes U+FFFD; all else stays as it was sent."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def outcome_of(text: str, *, refused: bool = False, filtered: bool = False, cut: bool = False) -> Outcome:
    """One outcome per reply: refusal before filter, filter before length, length before empty."""
    if refused:
        return "refusal"
    if filtered:
        return "filtered"
    if cut:
        return "length"
    return "text" if text.strip() else "empty"


def count(value: object) -> int:
    """A token count from a reply; 0 where the field is missing or not a number."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
