"""A teacher on 127.0.0.1 with the APIs of OpenAI (Chat Completions) and Anthropic (Messages).

It fails as told and counts what it would bill.

with LoopbackTeacher(script=["429", "500", "ok"]) as teacher:
    os.environ["OPENAI_BASE_URL"] = teacher.openai_url
    ...
assert teacher.billed_calls == 1
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from zephyrctl.testing.replies import BILLED, Api, Wire, wire

Script = str | Sequence[str] | Callable[[int, Mapping[str, Any]], str]
"""One mode for all calls; modes of the first calls, then `ok`; or a function of (times seen before, body)."""

_ROUTES: dict[str, Api] = {"/v1/chat/completions": "openai", "/v1/messages": "anthropic"}


class LoopbackTeacher:
    """A server for tests and tutorials; answers are the sandbox teacher's, equal for equal bodies.

    Modes: ok, slow, empty, length, refusal, filtered, surrogate, truncated, html, object, null, nothing,
    no_choices, bad_utf8, huge, bomb, hang, drip, drop, redirect, quota, and the statuses 400 401 402 403 404
    408 409 422 429 500 502 503 529. `headers` are added to replies that report a failure (Retry-After);
    `latency` is seconds before each reply.
    """

    def __init__(
        self, *, script: Script = "ok", latency: float = 0.0, headers: Mapping[str, str] | None = None
    ) -> None:
        self.script = script
        self.latency = latency
        self.headers = dict(headers or {})
        self.requests = 0
        self.billed: Counter[str] = Counter()
        """Billed calls by request body (canonical JSON)."""
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._seen: Counter[str] = Counter()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LoopbackTeacher:
        self._server = _Server(("127.0.0.1", 0), _handler_for(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.closing.set()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @property
    def url(self) -> str:
        """The server's address, as ANTHROPIC_BASE_URL wants it."""
        if self._server is None:
            raise RuntimeError("the loopback teacher is not running; use it in a with statement")
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def openai_url(self) -> str:
        """The address for OPENAI_BASE_URL."""
        return f"{self.url}/v1"

    @property
    def billed_calls(self) -> int:
        """Calls for which the model did its work."""
        return sum(self.billed.values())

    def mode_for(self, body: dict[str, Any]) -> str:
        """Count a request and say how it is treated."""
        identity = json.dumps(body, sort_keys=True)
        with self.lock:
            number, self.requests = self.requests, self.requests + 1
            times, self._seen[identity] = self._seen[identity], self._seen[identity] + 1
            self.bodies.append(body)
            if isinstance(self.script, str):
                mode = self.script
            elif callable(self.script):
                mode = self.script(times, body)
            else:
                mode = self.script[number] if number < len(self.script) else "ok"
            if mode in BILLED:
                self.billed[identity] += 1
        return mode


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of what is tested."""


def _handler_for(teacher: LoopbackTeacher) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
            api = _ROUTES.get(self.path)
            if api is None:
                self._send(Wire(404, b'{"error": {"message": "no such address"}}'))
                return
            with teacher.lock:
                teacher.in_flight += 1
                teacher.most_in_flight = max(teacher.most_in_flight, teacher.in_flight)
            try:
                self._treat(teacher.mode_for(body), api, body)
            finally:
                with teacher.lock:
                    teacher.in_flight -= 1

        def _treat(self, mode: str, api: Api, body: dict[str, Any]) -> None:
            if mode == "hang":
                teacher.closing.wait(60)
                self.close_connection = True
                return
            if teacher.latency or mode == "slow":
                time.sleep(teacher.latency or 0.2)
            key = self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix(
                "Bearer "
            )
            self._send(
                wire(mode, api, body, key=key, headers=teacher.headers),
                cut=mode == "drop",
                drip=mode == "drip",
            )

        def _send(self, reply: Wire, *, cut: bool = False, drip: bool = False) -> None:
            self.send_response(reply.status)
            for name, value in {"content-type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            if drip:
                for byte in reply.body:
                    if teacher.closing.wait(0.05):
                        break
                    self.wfile.write(bytes([byte]))
                return
            self.wfile.write(reply.body[: len(reply.body) // 2] if cut else reply.body)
            self.close_connection = cut

    return Handler
