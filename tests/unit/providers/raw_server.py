"""A server on 127.0.0.1 that answers every request with the bytes of the test, and keeps what was sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

Answer = Callable[["Seen"], bytes | None]
"""The bytes to send back before the connection is closed; None = none, ever."""


@dataclass(frozen=True)
class Seen:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


def http(body: bytes = b"{}", status: str = "200 OK", *, length: int | None = None, **headers: str) -> bytes:
    """A whole HTTP reply; `length` = another Content-Length than the true one."""
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"content-length: {size}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class RawServer:
    """`with RawServer(http(b"...")) as server:`; `answer` may also be a function of the request."""

    answer: bytes | Answer
    seen: list[Seen] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> RawServer:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 26)
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await self._stop.wait()
            server.close()

        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(serve(),), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {}
            for line in head[1:]:
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
            body = await reader.readexactly(int(headers.get("content-length") or 0))
            seen = Seen(head[0].split(" ")[1], headers, body)
            self.seen.append(seen)
            answer = self.answer(seen) if callable(self.answer) else self.answer
            if answer is None:
                await asyncio.sleep(60)
            writer.write(answer or b"")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
