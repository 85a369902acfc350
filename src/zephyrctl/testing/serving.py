"""A small HTTP/1.1 server in a thread of its own that can also misbehave on the wire.

One event loop serves all connections (keep-alive, chunked or sized requests). What to send is decided by a handler
that must return at once; waiting is said with `Outgoing.delay`.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal, cast

Manner = Literal["whole", "chunked", "cut", "drip", "reset", "close", "never"]
"""How a reply travels: in one piece, in chunks, cut off after half the body, one byte every 50 ms, a TCP reset
instead of it, the connection closed instead of it, or nothing at all."""

DRIP_SECONDS = 0.05
_CHUNK = 512
_HEAD_LIMIT = 64 << 10
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,8}")


@dataclass(frozen=True, slots=True)
class Incoming:
    """One HTTP request. Header names are in lower case; `path` is without the query."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Wire:
    """One HTTP reply and how it travels."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    manner: Manner = "whole"

    def head(self) -> bytes:
        """Status line and headers, as sent."""
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Scripted')}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.manner == "chunked":
            lines.append("transfer-encoding: chunked")
        else:
            lines.append(f"content-length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")

    def encode(self) -> bytes:
        """The whole reply, as sent."""
        if self.manner != "chunked":
            return self.head() + self.body
        parts = [self.body[start : start + _CHUNK] for start in range(0, len(self.body), _CHUNK)]
        sized = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
        return b"".join([self.head(), *sized, b"0\r\n\r\n"])


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What answers a request: a reply (or its bytes, made before), after `delay` seconds.

    `done` is called once, when the reply is sent or the client has left.
    """

    wire: Wire | bytes
    delay: float = 0.0
    done: Callable[[], None] | None = None


Handler = Callable[[Incoming], Outgoing]


class Server:
    """Listens on 127.0.0.1. `port` 0 takes a free one; `failure` is what the handler raised first, if anything."""

    def __init__(self, handler: Handler, *, port: int = 0) -> None:
        self.handler = handler
        self.connections: set[_Connection] = set()
        self.failure: Exception | None = None
        self._socket = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="loopback-server", daemon=True)

    def start(self) -> None:
        """Begin to answer; connections made before this wait."""
        self._thread.start()

    def stop(self) -> None:
        """Drop every connection and wait until the thread has ended."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        listener = await self._loop.create_server(
            lambda: _Connection(self, self._loop), sock=self._socket, backlog=1024
        )
        await self._over.wait()
        listener.close()
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One client's connection: requests are answered one after the other."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._buffer = bytearray()
        self._needed = 0
        self._busy = False
        self._done: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._busy = True
        if self._timer is not None:
            self._timer.cancel()
        self._settle()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy:
            self._next()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    def _next(self) -> None:
        """Answer the next request if all of it is here."""
        if len(self._buffer) < max(self._needed, 1):
            return
        try:
            incoming = self._take()
        except ValueError:
            self._transport.write(Wire(400, b"not a request", {"connection": "close"}).encode())
            self._transport.close()
            return
        if incoming is None:
            return
        self._busy = True
        try:
            outgoing = self._server.handler(incoming)
        except Exception as error:
            self._server.failure = self._server.failure or error
            outgoing = Outgoing(Wire(500, f'{{"error": {{"message": "{type(error).__name__}"}}}}'.encode()))
        self._done = outgoing.done
        if outgoing.delay > 0:
            self._timer = self._loop.call_later(outgoing.delay, self._send, outgoing.wire)
        else:
            self._send(outgoing.wire)

    def _take(self) -> Incoming | None:
        """The first request of the buffer, removed from it; None while part of it is missing."""
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > _HEAD_LIMIT:
                raise ValueError("the head of the request is too long")
            return None
        first, *lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        start = end + 4
        chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        taken = _unchunked(buffer, start) if chunked else _sized(buffer, start, headers)
        if taken is None:
            self._ask_for_more(headers, start, chunked)
            return None
        body, length = taken
        del buffer[:length]
        self._needed = 0
        path, _, query = target.partition("?")
        return Incoming(method, path, query, headers, body)

    def _ask_for_more(self, headers: Mapping[str, str], start: int, chunked: bool) -> None:
        if self._needed == 0 and headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._needed = start + 1 if chunked else start + int(headers["content-length"])

    def _send(self, wire: Wire | bytes) -> None:
        self._timer = None
        if isinstance(wire, bytes):
            self._transport.write(wire)
        elif wire.manner == "drip":
            self._transport.write(wire.head())
            self._drip(wire.body, 0)
            return
        elif wire.manner == "never" or not self._whole(wire):
            return
        self._settle()
        self._busy = False
        if self._buffer:
            self._loop.call_soon(self._resume)

    def _whole(self, wire: Wire) -> bool:
        """Send a reply; whether the connection goes on."""
        if wire.manner in ("whole", "chunked"):
            self._transport.write(wire.encode())
            if wire.headers.get("connection") != "close":
                return True
        if wire.manner == "cut":
            self._transport.write(wire.head() + wire.body[: len(wire.body) // 2])
        if wire.manner == "reset":
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()
        return False

    def _resume(self) -> None:
        if not self._busy:
            self._next()

    def _drip(self, body: bytes, position: int) -> None:
        self._transport.write(body[position : position + 1])
        if position + 1 < len(body):
            self._timer = self._loop.call_later(DRIP_SECONDS, self._drip, body, position + 1)
        else:
            self._timer = None
            self._settle()
            self._busy = False

    def _settle(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            done()


def _sized(buffer: bytearray, start: int, headers: Mapping[str, str]) -> tuple[bytes, int] | None:
    """The body by its content-length, and where it ends in the buffer."""
    end = start + int(headers.get("content-length") or 0)
    return (bytes(buffer[start:end]), end) if len(buffer) >= end else None


def _unchunked(buffer: bytearray, start: int) -> tuple[bytes, int] | None:
    """The body of a chunked request, and where it ends. Raises ValueError for a broken chunk size."""
    parts: list[bytes] = []
    position = start
    while True:
        line = buffer.find(b"\r\n", position)
        if line < 0:
            return None
        size = _CHUNK_SIZE.match(buffer, position, line)
        if size is None:
            raise ValueError("a chunk without a size")
        length, begin = int(size[0], 16), line + 2
        if len(buffer) < begin + length + 2:
            return None
        if length == 0:
            return b"".join(parts), begin + 2
        parts.append(bytes(buffer[begin : begin + length]))
        position = begin + length + 2
