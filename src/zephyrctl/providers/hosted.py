"""What hosted models have in common.

Addresses, one capped attempt over HTTP, and one meaning for every way it can fail.

The vendors' SDKs send; they never retry, never follow a redirect, and never read more than the cap.
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import cache
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from zephyrctl.errors import AuthError, UsageError, ZephyrError
from zephyrctl.providers.base import Rejected, Retryable, World
from zephyrctl.providers.retry import retry_after
from zephyrctl.redact import redact

REPLY_CAP = 16 << 20
"""Bytes of a reply, before and after decompression."""
ERROR_CAP = 64 << 10
_CONNECT_SECONDS = 30.0
_NO_CREDIT = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "billing_error",
    "account_deactivated",
    "access_terminated",
}
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")


class _Streamed(Protocol):
    def iter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]: ...


class HostedProvider(ABC):
    """A model behind an SDK.

    Subclasses say how a body is made, sent and read, and what each SDK exception means.
    """

    kind: str
    world: World = "real"
    endpoint: str
    key_variable: str
    exceptions: Mapping[str, str]
    """The meaning of each SDK exception without an HTTP status, by class name (see `translate`)."""

    def __init__(self, model: str, *, base_url: str, notices: tuple[str, ...] = ()) -> None:
        self.model = model
        self.base_url = base_url
        self.origin = origin_of(base_url)
        self.label = f"{self.kind}:{model}"
        self.notices = notices
        self._client: Any = None

    @abstractmethod
    def _open(self) -> Any:
        """The SDK's client, made in the event loop that will use it."""

    @abstractmethod
    def _call(self, client: Any, body: Mapping[str, Any]) -> AbstractAsyncContextManager[_Streamed]:
        """The SDK's request for a body, with the reply's bytes as a stream."""

    async def send(self, body: Mapping[str, Any]) -> bytes:
        """One attempt. Raises AuthError, UsageError, Retryable or Rejected."""
        try:
            return await self._receive(body)
        except (ZephyrError, Retryable, Rejected, TimeoutError):
            raise
        except Exception as error:
            fault = self.translate(error)
        # Raised out here: an SDK's own exception can repeat the key, so it must not hang on as the context.
        raise fault

    async def _receive(self, body: Mapping[str, Any]) -> bytes:
        if self._client is None:
            self._client = self._open()
        async with self._call(self._client, body) as response:
            parts, size = [], 0
            async for part in response.iter_bytes():
                size += len(part)
                if size > REPLY_CAP:
                    raise too_large(REPLY_CAP)
                parts.append(part)
            return b"".join(parts)

    def translate(self, error: Exception) -> Exception:
        """What an exception of the SDK or the HTTP library means here; an unknown one comes back as it is."""
        if any(cls.__name__ == "APIStatusError" for cls in type(error).__mro__):
            return self._by_status(error)
        meaning = self._meaning(error)
        cause = error.__cause__ or error
        if isinstance(cause, Retryable | Rejected):
            return cause
        if meaning == "timeout":
            return Retryable(
                "timeout", "the connection timed out", maybe_billed=type(cause).__name__ not in _NOT_SENT
            )
        if meaning == "transport" or _is_transport(error):
            sent = type(cause).__name__ not in _NOT_SENT
            return Retryable(
                "transport", f"the connection failed ({type(cause).__name__})", maybe_billed=sent
            )
        if meaning == "bad_envelope":
            return Retryable("bad_envelope", "the reply does not have the expected form")
        if meaning == "credentials":
            return AuthError(f"{self.label}: the SDK finds no usable key", hint=f"check {self.key_variable}")
        if meaning == "setup":
            return UsageError(f"{self.label}: the client cannot be set up ({type(error).__name__})")
        return error

    async def aclose(self) -> None:
        """Close the connections; the next call opens new ones in its own event loop."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _meaning(self, error: Exception) -> str | None:
        for cls in type(error).__mro__:
            if cls.__name__ in self.exceptions:
                return self.exceptions[cls.__name__]
        return None

    def _by_status(self, error: Any) -> Exception:
        status = int(error.status_code)
        headers = {str(k).lower(): str(v) for k, v in error.response.headers.items()}
        request_id = headers.get("x-request-id") or headers.get("request-id")
        codes, said = error_fields(error.body)
        detail = f"HTTP {status}" + (f": {said}" if said else "")
        if status in (401, 402, 403):
            why = "no credit" if status == 402 else "the key was refused"
            return AuthError(
                f"{self.label} at {self.origin}: {why} (HTTP {status})", hint=f"check {self.key_variable}"
            )
        if codes & _NO_CREDIT or "credit balance is too low" in said.lower():
            return AuthError(
                f"{self.label} at {self.origin}: the account has no credit left (HTTP {status})",
                hint="add credit, then run the same command again",
            )
        if status == 404:
            return UsageError(
                f"{self.label}: {self.origin} knows no such model or address ({detail})",
                hint="check the model's name; it may be retired",
            )
        if 300 <= status < 400:
            return UsageError(
                f"{self.label}: {self.origin} redirects elsewhere, and redirects are not followed"
            )
        if status == 429:
            return Retryable(
                "rate_limit", detail, retry_after=retry_after(headers), status=status, request_id=request_id
            )
        if status >= 500 or status in (408, 409, 425):
            reason = "server_error" if status >= 500 else "conflict"
            return Retryable(
                reason, detail, retry_after=retry_after(headers), status=status, request_id=request_id
            )
        return Rejected("rejected", detail, status=status, request_id=request_id)


def too_large(cap: int) -> Rejected:
    """The error for a reply beyond the cap; it is not asked again, for it was probably billed."""
    return Rejected(
        "too_large",
        f"the reply is larger than {cap >> 20} MiB" if cap >> 20 else "the error text is too long",
    )


def _is_transport(error: Exception) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, OSError) or bool(names & {"HTTPError", "StreamError"})


def error_fields(body: object) -> tuple[set[str], str]:
    """The codes and the text of an error body, in OpenAI's or Anthropic's form.

    The text is redacted and short.
    """
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    if not isinstance(body, dict):
        return set(), ""
    codes = {str(body[name]) for name in ("code", "type") if body.get(name)}
    text = body.get("message")
    return codes, redact(" ".join(text.split()))[:300] if isinstance(text, str) else ""


def origin_of(url: str) -> str:
    """An address without user, password, query and last slash: the endpoint's name in keys and manifests."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, host + port, parts.path.rstrip("/"), "", ""))


def checked_url(url: str, variable: str) -> str:
    """The address that a variable holds.

    Raises UsageError for other schemes, a missing host, and link-local hosts.
    """
    text = url.strip()
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UsageError(f"{variable} is not an address: {redact(text)}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"{variable} must be an http(s) address, got {redact(text)!r}")
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return text
    mapped = getattr(address, "ipv4_mapped", None) or address
    if mapped.is_link_local:
        raise UsageError(f"{variable} is a link-local address ({host}), which no model is served from")
    return text


def http_client_options() -> dict[str, Any]:
    """Options for an SDK's own HTTP client: no redirects, a connect time-out, capped bodies.

    Other time-outs stay off: the caller's deadline covers the whole attempt, where theirs would cover one
    read.
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
    # Reading the certificates takes longer than a loopback call, and every wave of calls makes a client.
    import httpx2

    return httpx2.create_ssl_context()


@cache
def _capping_hook() -> Callable[[Any], Awaitable[None]]:
    import httpx2

    class Capped(httpx2.AsyncByteStream):
        """A body that ends in an error when it grows beyond its cap."""

        def __init__(self, inner: Any, cap: int) -> None:
            self._inner = inner
            self._left = self._cap = cap

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for part in self._inner:
                self._left -= len(part)
                if self._left < 0:
                    raise too_large(self._cap)
                yield part

        async def aclose(self) -> None:
            await self._inner.aclose()

    async def hook(response: Any) -> None:
        response.stream = Capped(response.stream, REPLY_CAP if response.status_code < 300 else ERROR_CAP)

    return hook
