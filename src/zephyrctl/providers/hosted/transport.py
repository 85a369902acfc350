"""One HTTP request, as lean as it gets: no redirects, no cookies, no retries, and never more bytes than the cap.

The vendors' SDKs spend ten times the processor time on the same bytes; what is sent is compared with theirs in the
tests.
"""

from __future__ import annotations

import asyncio
import errno
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass
from weakref import WeakKeyDictionary

from zephyrctl.errors import UsageError
from zephyrctl.providers.base import Rejected, Retryable
from zephyrctl.providers.hosted.endpoints import is_loopback
from zephyrctl.redact import redact, register

if TYPE_CHECKING:
    import aiohttp

REPLY_CAP = 16 << 20
"""Bytes of a reply, before and after decompression."""
ERROR_CAP = 64 << 10
"""Bytes of the body of a reply that reports an error; more of it is not read."""
CONNECT_SECONDS = 30.0
_KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept: less than common servers do, so that none is used as it closes."""


@dataclass(frozen=True)
class Reply:
    """Status, headers (names in lower case) and decoded body of one reply."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Unreachable(Retryable):
    """No connection came about, so nothing was sent."""


class Transport:
    """Connections of one provider, kept for each event loop that uses it."""

    def __init__(self) -> None:
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = (
            WeakKeyDictionary()
        )
        self._proxies: dict[str, tuple[str | None, dict[str, str]]] = {}

    async def post(self, url: str, payload: bytes, headers: Mapping[str, str]) -> Reply:
        """Send `payload` and read the whole reply, without a time limit of its own but for connecting.

        Raises Retryable (Unreachable where nothing was sent), Rejected("too_large"), UsageError.
        """
        try:
            return await self._post(url, payload, headers)
        except (Retryable, Rejected, UsageError, asyncio.CancelledError):
            raise
        except Exception as error:
            fault = meaning(error)
        # raised out here: what the library says can repeat headers, so it must not hang on as the context
        raise fault

    async def _post(self, url: str, payload: bytes, headers: Mapping[str, str]) -> Reply:
        session = self._session()
        if url not in self._proxies:
            self._proxies[url] = _proxy_for(url)
        proxy, login = self._proxies[url]
        secure = url.startswith("https:")
        async with session.post(
            url,
            data=payload,
            headers=headers if secure else {**headers, **login},
            allow_redirects=False,
            proxy=proxy,
            proxy_headers=login if secure else None,
            ssl=_tls() if secure else True,
        ) as response:
            names = {name.lower(): value for name, value in response.headers.items()}
            good = response.status < 300
            body = await _read(response, REPLY_CAP if good else ERROR_CAP, whole=good)
            encoding = names.get("content-encoding", "").strip().lower()
            return Reply(response.status, names, _decoded(body, encoding, whole=good))

    async def aclose(self) -> None:
        """Close the connections of the running event loop; the next call opens new ones."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = _open_session()
        return session


def _open_session() -> aiohttp.ClientSession:
    import aiohttp

    # limit 0: how many calls are out at once is the caller's business
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        headers={"Accept-Encoding": "gzip, deflate"},
    )


@cache
def _tls() -> Any:
    # reading the certificates takes longer than a loopback call, and every wave of calls opens a session
    import httpx2

    return httpx2.create_ssl_context()


def _proxy_for(url: str) -> tuple[str | None, dict[str, str]]:
    """The proxy that the environment names for an address, and the header that logs in there."""
    import aiohttp
    import yarl

    target = yarl.URL(url)
    proxies = getproxies()
    text = proxies.get(target.scheme) or proxies.get("all")
    # no proxy leads to a server on this machine, and not everybody remembers to say so in NO_PROXY
    if not text or is_loopback(url) or proxy_bypass(target.host or ""):
        return None, {}
    proxy = yarl.URL(text if "://" in text else f"http://{text}")
    if proxy.scheme not in ("http", "https"):
        raise UsageError(
            f"the proxy {redact(text)} is not an http one",
            hint="set HTTPS_PROXY to an http proxy, or NO_PROXY",
        )
    if proxy.user is None:
        return str(proxy), {}
    register(proxy.password or "")
    login = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
    return str(proxy.with_user(None)), {"Proxy-Authorization": login}


async def _read(response: aiohttp.ClientResponse, cap: int, *, whole: bool) -> bytes:
    """The body as it is on the wire, up to the cap.

    Raises Rejected("too_large") beyond it, where the whole is wanted.
    """
    length = response.content_length
    parts: list[bytes] = []
    size = 0
    if not (whole and length is not None and length > cap):
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > cap:
                break
        else:
            return parts[0] if len(parts) == 1 else b"".join(parts)
    response.close()
    if whole:
        raise too_large(cap)
    return b"".join(parts)[:cap]


def _decoded(body: bytes, encoding: str, *, whole: bool) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Retryable("bad_envelope", f"the reply is encoded as {encoding[:20]!r}", maybe_billed=whole)
    cap = REPLY_CAP if whole else ERROR_CAP
    raw_deflate = encoding == "deflate" and (body[:1] or b"\0")[0] & 0x0F != 8
    stream = zlib.decompressobj(-zlib.MAX_WBITS if raw_deflate else zlib.MAX_WBITS | 32)
    try:
        decoded = stream.decompress(body, cap + 1)
    except zlib.error:
        decoded = b""
    if not whole:
        return decoded[:cap]
    if len(decoded) > cap:
        raise too_large(cap)
    if not stream.eof:
        raise Retryable("bad_envelope", f"the reply is not whole as {encoding}", maybe_billed=True)
    return decoded


def too_large(cap: int) -> Rejected:
    """The error for a reply beyond the cap; it is not asked again, for it was probably billed."""
    return Rejected("too_large", f"the reply is larger than {cap >> 20} MiB", maybe_billed=True)


def meaning(error: Exception) -> Exception:
    """What an exception of the HTTP library means here; an unknown one comes back as it is."""
    import aiohttp

    name = type(error).__name__
    if isinstance(error, aiohttp.InvalidURL):
        return UsageError("an address that no request can be sent to")
    if isinstance(error, aiohttp.ClientConnectorError):
        if error.os_error.errno in (errno.EMFILE, errno.ENFILE):
            return Unreachable("too_many_files", "no file descriptor is left for a connection")
        return Unreachable("transport", f"the connection failed ({name})")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Unreachable("timeout", f"no connection within {CONNECT_SECONDS:g} s")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return Unreachable("transport", f"the proxy gave no connection (HTTP {error.status})")
    if isinstance(error, aiohttp.ClientError | OSError):
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return Unreachable("too_many_files", "no file descriptor is left for a connection")
        return Retryable("transport", f"the connection failed ({name})", maybe_billed=True)
    return error
