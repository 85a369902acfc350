"""The port that every model stands behind: what is asked, what comes back, and how an attempt can fail."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from zephyrctl.money import Price, Tokens
from zephyrctl.records import Message
from zephyrctl.redact import redact

Outcome = Literal["text", "empty", "length", "reasoning_cut", "refusal", "filtered"]
"""`length` = cut while answering, `reasoning_cut` = cut before an answer began, while still reasoning."""
World = Literal["sandbox", "real"]
UNPAID = "unpaid"
"""The reason of a Failure that is none: the call was not sent, because this run only replays."""
_NAME = 200
_MOST = 2**53 - 1
"""The largest whole number that every reader of JSON takes as it is; no count of tokens comes near it."""


@dataclass(frozen=True)
class Schema:
    """A JSON schema that the answer must follow, where the endpoint can enforce it."""

    name: str
    definition: Mapping[str, Any]


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    `max_tokens` counts answer tokens, hidden reasoning included; `seed` None = the provider's own; `logprobs` =
    how many alternatives to report for each token (0 = the chosen token alone, None = do not report); `effort` =
    reasoning effort where the model has one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    effort: str | None = None


@dataclass(frozen=True)
class Ask:
    """One question to one model.

    `draw` 0, 1, 2 … are separate, repeatable answers; `purpose` is for people only.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    draw: int = 0
    purpose: str = ""
    schema: Schema | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the answer, its log-probability (natural logarithm) and the likeliest alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Reading:
    """What the bytes of one reply say.

    Every outcome other than `text` is final: paid for, stored, not asked again. `reasoning` is kept apart from
    `text` and never part of it.
    """

    text: str
    outcome: Outcome
    finish_reason: str
    served_model: str
    tokens: Tokens | None = None
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class Answer:
    """A reply that is in the ledger. `replayed` = it was there before and cost nothing now."""

    text: str
    outcome: Outcome
    finish_reason: str
    served_model: str
    tokens: Tokens | None
    key: str
    replayed: bool
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class Received:
    """The bytes of one reply over the wire, its request id, and what its headers tell about rate limits.

    `rest` = seconds until the endpoint takes further requests, where it says that none are left now.
    """

    body: bytes
    request_id: str | None = None
    rest: float | None = None


@dataclass(frozen=True)
class Failure:
    """No reply. Never data: a stage counts it or drops the row with this reason.

    `unpaid` = it was not asked, because this run only replays (a dry run, or a partial artifact).
    """

    reason: str
    detail: str
    key: str


class Retryable(Exception):
    """One attempt failed in a way that another may not.

    `reason`: rate_limit, server_error, transport, timeout, conflict, too_many_files or bad_envelope. `retry_after`
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
    """This request is not asked again: the row fails, the others go on.

    `reason`: rejected (a 4xx status) or too_large (a reply beyond the cap: `maybe_billed`).
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        maybe_billed: bool = False,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.status = status
        self.request_id = request_id
        self.maybe_billed = maybe_billed


class Model(Protocol):
    """What online and batch providers share.

    `label` is what rows and manifests call the model, `origin` and `endpoint` are where it is, `world` keeps
    sandbox and real data apart. `price` None = not known; `dropped` names the settings that the model does not
    take and that are left out of every request.
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
    @property
    def price(self) -> Price | None: ...
    @property
    def dropped(self) -> tuple[str, ...]: ...

    def wire(self, ask: Ask) -> dict[str, Any]:
        """The whole request body; with origin, endpoint and draw it makes the ledger's key."""
        ...

    def read(self, raw: bytes) -> Reading:
        """What a reply says, from its bytes alone.

        Raises Retryable("bad_envelope") for bytes that are no reply.
        """
        ...

    def bound(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """The most tokens a request can be charged for: (input, output, hidden reasoning included)."""
        ...


class Provider(Model, Protocol):
    """A model that is asked one request at a time, many at once."""

    async def send(self, body: Mapping[str, Any]) -> Received:
        """One attempt, without retries. Raises AuthError, UsageError, Retryable or Rejected."""
        ...


@runtime_checkable
class Batching(Protocol):
    """A provider that also takes requests in bulk, answered within a day, at a lower price."""

    @property
    def batch_limits(self) -> BatchLimits: ...

    async def batch_submit(self, batch: str, lines: Sequence[BatchLine]) -> str:
        """Hand in one batch; its name at the provider. `batch` (our id) travels along as metadata."""
        ...

    async def batch_find(self, batch: str, keys: Sequence[str], others: Collection[str]) -> str | None:
        """The provider's name of our batch `batch`, which holds `keys`; None where it has none: a crash may have
        come between handing in and noting the name. `others` = names that are known to mean other batches.

        Raises Retryable("unsettled") while the provider cannot tell yet.
        """
        ...

    async def batch_poll(self, remote_id: str) -> BatchState:
        """How far it is."""
        ...

    def batch_results(self, remote_id: str) -> AsyncIterator[BatchResult]:
        """Everything that came out, from output and error files, in any order."""
        ...

    async def batch_cancel(self, remote_id: str) -> None:
        """Ask to stop; what is finished is still delivered and charged."""
        ...


@dataclass(frozen=True)
class BatchLimits:
    """How large one batch may be: requests, and bytes of its file."""

    requests: int
    size: int


@dataclass(frozen=True)
class BatchLine:
    """One request of a batch. `custom_id` is the ledger's key."""

    custom_id: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class BatchState:
    """How far a batch is: `done` of `total` requests; `detail` says why nothing will come.

    `state`: running; ended (results can be read); refused (not begun, nothing is charged); full (refused because
    the account's queue has no room now, nothing is charged); lost (the provider keeps no results of it any more,
    and may have charged for it).
    """

    state: Literal["running", "ended", "refused", "full", "lost"]
    done: int = 0
    total: int = 0
    detail: str = ""


@dataclass(frozen=True)
class BatchResult:
    """One line of what came out: the bytes of a reply, or why there is none (`reason` as in Retryable and
    Rejected; `expired` and `cancelled` are not charged)."""

    custom_id: str
    body: bytes | None
    reason: str = ""
    detail: str = ""
    final: bool = False
    """Whether asking again is pointless (the provider rejects the request)."""


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

    Raises Retryable("bad_envelope") for HTML, cut JSON, bad UTF-8, `null`, lists, `{}`; whoever sent that may
    have charged for it.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        head = raw[:60].decode("utf-8", "replace").strip()
        raise Retryable(
            "bad_envelope", f"the reply is not JSON (it begins {redact(head)!r})", maybe_billed=True
        ) from None
    if not isinstance(value, dict) or not value:
        raise Retryable(
            "bad_envelope",
            f"the reply is not a JSON object with content (got {redact(str(value)[:20])!r})",
            maybe_billed=True,
        )
    return value


def clean_text(text: str) -> str:
    """Text that can be stored as UTF-8: a lone surrogate becomes U+FFFD; all else stays as it was sent."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def text_of(*values: object) -> str:
    """The strings among some fields of a reply, joined, as text that can be stored."""
    return clean_text("".join(value for value in values if isinstance(value, str)))


def name_of(value: object) -> str:
    """An id, a model's name or a finish reason from a reply, its first 200 characters; "" where there is none."""
    return text_of(value)[:_NAME]


def outcome_of(
    text: str, *, refused: bool = False, filtered: bool = False, cut: bool = False, reasoned: bool = False
) -> Outcome:
    """One outcome per reply: refusal before filter, filter before length, length before empty.

    `reasoned` = reasoning was seen or counted: a reply cut before its answer began is `reasoning_cut`.
    """
    if refused:
        return "refusal"
    if filtered:
        return "filtered"
    if cut:
        return "reasoning_cut" if reasoned and not text.strip() else "length"
    return "text" if text.strip() else "empty"


def counted(value: object) -> int | None:
    """A token count from a reply; None for all but a whole number from 0 to 2^53 - 1."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST:
        return value
    return None


def count(value: object) -> int:
    """A token count from a reply; 0 where there is none."""
    return counted(value) or 0
