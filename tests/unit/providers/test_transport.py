"""One HTTP request: what is sent, what is refused, and what each way to fail means."""

from __future__ import annotations

import asyncio
import errno
import gzip
import socket
import threading
import zlib
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from raw_server import RawServer, Seen, http

from zephyrctl.errors import UsageError
from zephyrctl.providers.base import Rejected, Retryable
from zephyrctl.providers.hosted import transport
from zephyrctl.providers.hosted.transport import ERROR_CAP, REPLY_CAP, Reply, Transport, Unreachable, meaning


def post(url: str, payload: bytes = b"{}", times: int = 1, **headers: str) -> Reply:
    async def go() -> Reply:
        one = Transport()
        try:
            for _ in range(times):
                reply = await one.post(url, payload, headers)
            return reply
        finally:
            await one.aclose()

    return asyncio.run(go())


def fault(answer: bytes | Callable[[Seen], bytes | None]) -> Exception:
    with RawServer(answer) as server, pytest.raises((Retryable, Rejected, UsageError)) as caught:
        post(server.url + "/x", Authorization="Bearer sk-canary-0123456789")
    assert caught.value.__context__ is None
    assert "canary" not in repr(caught.value)
    return caught.value


def test_the_bytes_and_headers_arrive_and_no_cookie_is_kept() -> None:
    with RawServer(http(b"hi", Set_Cookie="a=b", X_Request_Id="req-1")) as server:
        reply = post(server.url + "/v1/x", b'{"a": 1}', times=2, Authorization="Bearer k")
    assert (reply.status, reply.body, reply.headers["x-request-id"]) == (200, b"hi", "req-1")
    for seen in server.seen:
        assert (seen.path, seen.body) == ("/v1/x", b'{"a": 1}')
        assert seen.headers["authorization"] == "Bearer k"
        assert seen.headers["accept-encoding"] == "gzip, deflate"
        assert "cookie" not in seen.headers
    assert len(server.seen) == 2


RAW = zlib.compressobj(wbits=-15)
ENCODED = {
    "gzip": gzip.compress(b"text " * 900),
    "x-gzip": gzip.compress(b"text " * 900),
    "deflate": zlib.compress(b"text " * 900),
    "deflate ": RAW.compress(b"text " * 900) + RAW.flush(),
    "identity": b"text " * 900,
}


@pytest.mark.parametrize("encoding", list(ENCODED))
def test_encodings(encoding: str) -> None:
    with RawServer(http(ENCODED[encoding], Content_Encoding=encoding)) as server:
        assert post(server.url).body == b"text " * 900


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"text", "br"),
        (b"text", "gzip"),
        (gzip.compress(b"text " * 900)[:-12], "gzip"),
        (b"", "gzip"),
        (gzip.compress(b"text"), "gzip, gzip"),
    ],
    ids=["br", "no gzip", "cut gzip", "empty gzip", "twice"],
)
def test_an_encoding_that_cannot_be_read_is_no_reply(body: bytes, encoding: str) -> None:
    error = fault(http(body, Content_Encoding=encoding))
    assert isinstance(error, Retryable)
    assert error.reason == "bad_envelope"
    assert error.maybe_billed


BOMB = gzip.compress(bytes(REPLY_CAP + 1))


@pytest.mark.parametrize(
    "answer",
    [
        http(bytes(REPLY_CAP + 1)),
        http(b"x", length=REPLY_CAP + 1),
        http(BOMB, Content_Encoding="gzip"),
    ],
    ids=["long", "said to be long", "bomb"],
)
def test_a_reply_beyond_the_cap_is_not_read(answer: bytes) -> None:
    error = fault(answer)
    assert isinstance(error, Rejected)
    assert error.reason == "too_large"
    assert error.maybe_billed


def test_a_reply_at_the_cap_is_read() -> None:
    with RawServer(http(gzip.compress(bytes(REPLY_CAP)), Content_Encoding="gzip")) as server:
        assert len(post(server.url).body) == REPLY_CAP


def test_of_an_error_no_more_than_its_beginning_is_read() -> None:
    for answer in (
        http(b"e" * (ERROR_CAP * 3), "500 Oh"),
        http(gzip.compress(b"e" * (ERROR_CAP * 3)), "500 Oh", Content_Encoding="gzip"),
    ):
        with RawServer(answer) as server:
            reply = post(server.url)
        assert (reply.status, reply.body) == (500, b"e" * ERROR_CAP)
    with RawServer(http(b"no gzip", "500 Oh", Content_Encoding="gzip")) as server:
        assert post(server.url).status == 500


def test_a_redirect_is_not_followed() -> None:
    with RawServer(http()) as other, RawServer(http(b"", "307 Go", Location=other.url)) as server:
        assert post(server.url).status == 307
    assert other.seen == []


@pytest.mark.parametrize(
    "answer",
    [
        http(b"{}", length=50),
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"rubbish\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na b\r\n\r\n",
    ],
    ids=["cut body", "nothing", "cut head", "no http", "bad header"],
)
def test_a_connection_that_breaks_after_the_request_may_be_billed(answer: bytes) -> None:
    error = fault(answer)
    assert isinstance(error, Retryable)
    assert not isinstance(error, Unreachable)
    assert error.reason == "transport"
    assert error.maybe_billed


def test_where_nobody_listens_nothing_was_sent() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/", "http://nobody.invalid/", f"https://127.0.0.1:{port}/"):
        with pytest.raises(Unreachable) as caught:
            post(url)
        assert caught.value.reason == "transport"
        assert not caught.value.maybe_billed


def test_a_server_that_does_not_speak_tls_gets_nothing() -> None:
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                got.append(peer.recv(1 << 16))
                peer.sendall(http())

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(Unreachable):
            post(f"https://127.0.0.1:{server.getsockname()[1]}/", b"the prompt")
        thread.join()
    assert b"the prompt" not in b"".join(got)


def test_no_file_descriptor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: Any, **more: Any) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    async def go() -> None:
        one = Transport()
        one._session()
        monkeypatch.setattr(socket, "socket", none_left)
        try:
            await one.post("http://127.0.0.1:9/", b"{}", {})
        finally:
            monkeypatch.undo()
            await one.aclose()

    with pytest.raises(Unreachable) as caught:
        asyncio.run(go())
    assert caught.value.reason == "too_many_files"
    assert not caught.value.maybe_billed


def test_the_deadline_of_the_caller_passes_through() -> None:
    async def go(url: str) -> None:
        one = Transport()
        try:
            async with asyncio.timeout(0.1):
                await one.post(url, b"{}", {})
        finally:
            await one.aclose()

    with RawServer(lambda seen: None) as server, pytest.raises(TimeoutError):
        asyncio.run(go(server.url))


def test_a_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(http(b"by proxy")) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:secret-word@127.0.0.1:{proxy.port}")
        assert post("http://models.invalid/v1").body == b"by proxy"
        assert proxy.seen[0].path == "http://models.invalid/v1"
        assert proxy.seen[0].headers["proxy-authorization"].startswith("Basic ")
        monkeypatch.setenv("no_proxy", "models.invalid")
        with pytest.raises(Unreachable):
            post("http://models.invalid/v1")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(UsageError, match="proxy"):
        post("http://other.invalid/v1")


def test_one_session_for_each_event_loop() -> None:
    one = Transport()

    async def go(url: str) -> int:
        await one.post(url, b"{}", {})
        sessions = len(one._sessions)
        await one.aclose()
        await one.aclose()
        return sessions

    with RawServer(http()) as server:
        assert [asyncio.run(go(server.url)) for _ in range(3)] == [1, 1, 1]


def every_error() -> list[type[Exception]]:
    found = [v for v in vars(aiohttp).values() if isinstance(v, type) and issubclass(v, aiohttp.ClientError)]
    return [cls for cls in found if not issubclass(cls, Warning)]


NEVER_SENT = {
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ClientConnectorSSLError",
    "ClientConnectorCertificateError",
    "ClientProxyConnectionError",
    "ClientSSLError",
    "ConnectionTimeoutError",
    "ClientHttpProxyError",
    "UnixClientConnectorError",
}


def test_every_error_of_the_http_library_has_a_meaning() -> None:
    assert len(every_error()) > 20
    for cls in every_error():
        made: Any = cls.__new__(cls)
        Exception.__init__(made, "sk-canary-0123456789")
        made._os_error, made._conn_key, made.status = OSError(1, "x"), None, 502
        fault = meaning(made)
        if issubclass(cls, aiohttp.InvalidURL):
            assert isinstance(fault, UsageError)
            continue
        assert isinstance(fault, Retryable), cls
        assert fault.maybe_billed == (cls.__name__ not in NEVER_SENT), cls
        assert isinstance(fault, Unreachable) == (not fault.maybe_billed), cls
        assert "canary" not in str(fault)
    bug = ZeroDivisionError()
    assert meaning(bug) is bug
    assert transport.CONNECT_SECONDS == 30
