"""Plain clients for the loopback teacher: one request over http.client, or bytes over a socket."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from zephyrctl.testing.teacher import LoopbackTeacher

PATHS = {"openai": "/v1/chat/completions", "responses": "/v1/responses", "anthropic": "/v1/messages"}


class Got(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


def question(text: str = "Add 2 and 3.", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-test", "messages": [{"role": "user", "content": text}], "max_tokens": 64, **more}


def ask(
    teacher: LoopbackTeacher,
    body: Any = None,
    *,
    api: str = "openai",
    headers: Mapping[str, str] | None = None,
) -> Got:
    """One call on a connection of its own."""
    return fetch(teacher, "POST", PATHS[api], question() if body is None else body, headers=headers)


def fetch(
    teacher: LoopbackTeacher,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> Got:
    connection = http.client.HTTPConnection(urlsplit(teacher.url).netloc, timeout=20)
    try:
        sent = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        connection.request(method, path, sent, {"authorization": "Bearer sk-test-1234567", **(headers or {})})
        reply = connection.getresponse()
        return Got(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
    finally:
        connection.close()


def raw_request(body: bytes, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    if "transfer_encoding" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def connected(teacher: LoopbackTeacher) -> socket.socket:
    return socket.create_connection(("127.0.0.1", teacher.port), timeout=20)


def read_replies(connection: socket.socket, number: int) -> list[Any]:
    """The JSON documents of sized replies on one connection."""
    stream, found = connection.makefile("rb"), []
    for _ in range(number):
        length = 0
        while line := stream.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name == b"content-length" else length
        found.append(json.loads(stream.read(length)))
    return found


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true within twenty seconds."""
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()
