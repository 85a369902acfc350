"""What the batch APIs of both vendors have in common.

An SDK client without retries and redirects, a deadline around every call, results read line by line, and one meaning
for every way it can fail.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, TypeVar

from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.providers.base import BatchResult, Rejected, Retryable
from zephyrctl.providers.hosted.endpoints import origin_of
from zephyrctl.providers.hosted.faults import fault_of
from zephyrctl.providers.hosted.provider import HostedProvider
from zephyrctl.providers.hosted.transport import Reply
from zephyrctl.redact import redact

CONTROL_SECONDS = 120.0
"""For a call that only asks or orders."""
UPLOAD_SECONDS = 1800.0
"""For handing in a file."""
QUIET_SECONDS = 120.0
"""Between two pieces of a result file."""
RESULT_SECONDS = 2 * 3600.0
"""For one result file."""
CONTROL_CAP = 16 << 20
"""Bytes of a reply that is no result file."""
LINE_CAP = 17 << 20
"""Bytes of one line of a result file; a longer one is passed over."""

_CONNECT_SECONDS = 30.0
_NOT_FINAL = {401, 402, 403, 404, 408, 409, 425, 429}
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")

T = TypeVar("T")


class Bytes(Protocol):
    """A reply whose body comes in pieces."""

    def iter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        """The body, decoded."""
        ...


@dataclass(frozen=True)
class Door:
    """Where batches are handed in: the address, its key and where that is kept, the provider's name for people."""

    url: str
    key: str = field(repr=False)
    key_variable: str | None
    label: str


def door_of(provider: HostedProvider) -> Door:
    """The door of a hosted model's own address. Raises AuthError without a key."""
    place = provider.place
    return Door(place.urls[0], provider.key() or "", place.key_variable, provider.label)


async def guarded(door: Door, seconds: float, call: Callable[[], Awaitable[T]]) -> T:
    """What an SDK call gives within `seconds`.

    Raises AuthError, UsageError, Retryable or Rejected, and nothing of the SDK's: its own exceptions can repeat the
    key.
    """
    try:
        async with asyncio.timeout(seconds):
            return await call()
    except (ZephyrError, Retryable, Rejected):
        raise
    except TimeoutError:
        fault: Exception = Retryable("timeout", f"no whole reply within {seconds:g} s", maybe_billed=True)
    except Exception as error:
        fault = meaning(door, error)
    # raised out here, so that the SDK's exception does not hang on as the context
    raise fault


def meaning(door: Door, error: Exception) -> Exception:
    """What an exception of an SDK or of its HTTP library means here; an unknown one comes back as it is."""
    names = [cls.__name__ for cls in type(error).__mro__]
    cause = error.__cause__ or error
    if isinstance(cause, Retryable | Rejected):
        return cause
    if "APIStatusError" in names:
        return _by_status(door, error)
    if "APIConnectionError" in names or "HTTPError" in names or isinstance(error, OSError):
        sent = type(cause).__name__ not in _NOT_SENT
        return Retryable("transport", f"the connection failed ({type(cause).__name__})", maybe_billed=sent)
    if "APIError" in names or isinstance(error, ValueError | AttributeError | TypeError):
        # the SDKs make objects of whatever comes; what is no batch shows when it is read
        return Retryable("bad_envelope", "the reply does not have the expected form", maybe_billed=True)
    if "OpenAIError" in names or "AnthropicError" in names:
        return UsageError(f"{door.label}: the client cannot be set up ({type(error).__name__})")
    return error


def is_gone(error: Exception) -> bool:
    """Whether an SDK's exception says that there is no such thing (HTTP 404)."""
    return getattr(error, "status_code", None) == 404


def name_in(document: Any) -> str:
    """The `id` of what an API has made. Raises Retryable("bad_envelope") where there is none."""
    name = getattr(document, "id", None)
    if not isinstance(name, str) or not name:
        raise Retryable("bad_envelope", "the reply names nothing that was made", maybe_billed=True)
    return name


def _by_status(door: Door, error: Any) -> Exception:
    origin = origin_of(door.url)
    if is_gone(error):
        return UsageError(
            f"{door.label}: {origin} takes no batches (HTTP 404)", hint="leave --mode away, or --mode online"
        )
    headers = {str(name).lower(): str(value) for name, value in error.response.headers.items()}
    body = json.dumps(error.body).encode() if error.body is not None else b""
    reply = Reply(int(error.status_code), headers, body)
    return fault_of(reply, label=door.label, origin=origin, key_variable=door.key_variable)


async def lines_of(
    door: Door, opened: Callable[[], AbstractAsyncContextManager[Bytes]]
) -> AsyncIterator[bytes]:
    """The lines of a result file as they arrive, without their ends and without empty ones; none where there is no
    such file any more.

    A line beyond LINE_CAP is passed over. Raises like `guarded`; a file that is cut off raises after its last whole
    line.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + RESULT_SECONDS
    context = opened()

    async def enter() -> Bytes | None:
        try:
            return await context.__aenter__()
        except Exception as error:
            if is_gone(error):
                return None
            raise

    response = await guarded(door, CONTROL_SECONDS, enter)
    if response is None:
        return
    try:
        pieces = aiter(response.iter_bytes())

        async def piece() -> bytes | None:
            return await anext(pieces, None)

        rest, skipping = b"", False
        while (part := await guarded(door, min(QUIET_SECONDS, until - loop.time()), piece)) is not None:
            *whole, rest = (rest + part).split(b"\n")
            for number, line in enumerate(whole):
                if line.strip() and not (skipping and number == 0):
                    yield line
            skipping = skipping and not whole
            if len(rest) > LINE_CAP:
                rest, skipping = b"", True
        if rest.strip() and not skipping:
            yield rest
    finally:
        await context.__aexit__(None, None, None)


def client_options() -> dict[str, Any]:
    """Options for the HTTP client of an SDK: no redirects, a connect time-out, capped bodies but for results.

    Other time-outs stay off: the deadline around a call covers it whole.
    """
    import httpx2

    return {
        "follow_redirects": False,
        "timeout": httpx2.Timeout(None, connect=_CONNECT_SECONDS),
        "event_hooks": {"response": [_capping_hook()]},
        "verify": _tls(),
    }


@cache
def _tls() -> Any:
    import httpx2

    return httpx2.create_ssl_context()


@cache
def _capping_hook() -> Callable[[Any], Awaitable[None]]:
    import httpx2

    class Capped(httpx2.AsyncByteStream):
        """A body that ends in an error when it grows beyond the cap."""

        def __init__(self, inner: Any, cap: int) -> None:
            self._inner = inner
            self._left = self._cap = cap

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for part in self._inner:
                self._left -= len(part)
                if self._left < 0:
                    raise Rejected("too_large", f"the reply is larger than {self._cap >> 10} KiB")
                yield part

        async def aclose(self) -> None:
            await self._inner.aclose()

    async def hook(response: Any) -> None:
        results = response.request.url.path.endswith(("/content", "/results"))
        if not results or response.status_code >= 300:
            plain = response.headers.get("content-encoding", "identity") == "identity"
            # compressed replies are not asked for; one can grow a thousandfold behind this cap
            response.stream = Capped(response.stream, CONTROL_CAP if plain else CONTROL_CAP >> 6)

    return hook


def reply_bytes(document: object) -> bytes:
    """A reply that came inside another document, as bytes for the ledger."""
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def refused(custom_id: str, status: int, said: object) -> BatchResult:
    """The result of a request that was answered with an error status."""
    final = 400 <= status < 500 and status not in _NOT_FINAL
    reason = "rejected" if final else "rate_limit" if status == 429 else "server_error"
    detail = f"HTTP {status}" + (f": {told(said)}" if told(said) else "")
    return BatchResult(custom_id, None, reason, detail, final)


def told(error: object) -> str:
    """The text of an error document, redacted and short."""
    while isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    text = error.get("message") if isinstance(error, dict) else error
    return redact(" ".join(text.split()))[:300] if isinstance(text, str) else ""
