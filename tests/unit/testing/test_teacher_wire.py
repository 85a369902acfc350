"""The server under the loopback teacher: connections, odd requests, waiting, and what goes wrong in it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
from wire_clients import ask, connected, eventually, fetch, question, raw_request, read_replies

from zephyrctl.testing.serving import Incoming, Outgoing, Server, Wire
from zephyrctl.testing.teacher import LoopbackTeacher

BODY = json.dumps(question()).encode()


def test_a_connection_is_kept_and_requests_wait_their_turn() -> None:
    with LoopbackTeacher(script=["404", "ok", "429"]) as teacher, connected(teacher) as connection:
        connection.sendall(raw_request(BODY) * 3)
        first, second, third = read_replies(connection, 3)
        assert "error" in first
        assert second["object"] == "chat.completion"
        assert "error" in third
        connection.sendall(raw_request(BODY))
        assert read_replies(connection, 1)[0]["object"] == "chat.completion"
    assert teacher.most_in_flight == 1


def test_a_request_in_pieces_and_in_chunks() -> None:
    chunked = b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])
    requests = [raw_request(BODY), raw_request(chunked, transfer_encoding="chunked")]
    with LoopbackTeacher() as teacher, connected(teacher) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in requests:
            for start in range(0, len(request), 40):
                connection.sendall(request[start : start + 40])
                time.sleep(0.001)
            assert read_replies(connection, 1)[0]["object"] == "chat.completion"
    assert teacher.bodies == [question()] * 2


def test_a_client_that_waits_for_leave_to_send() -> None:
    request = raw_request(BODY, expect="100-continue")
    head, body = request[: -len(BODY)], BODY
    with LoopbackTeacher() as teacher, connected(teacher) as connection:
        connection.sendall(head)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_replies(connection, 1)[0]["object"] == "chat.completion"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /\r\n\r\n",
        b"x" * 70_000,
        raw_request(b"zz\r\n", transfer_encoding="chunked"),
    ],
)
def test_what_is_no_request_ends_the_connection(request_bytes: bytes) -> None:
    with LoopbackTeacher() as teacher, connected(teacher) as connection:
        connection.sendall(request_bytes)
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
        assert connection.recv(1000) == b""
        assert ask(teacher).status == 200


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"null", b"\xff"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with LoopbackTeacher() as teacher:
        assert ask(teacher, body).status == (400 if body else 200)
        assert teacher.requests == (not body)


@pytest.mark.parametrize("mode", ["hang", "no_reply", "drip", "slow"])
def test_a_client_that_leaves_is_no_longer_in_flight(mode: str) -> None:
    with LoopbackTeacher(script=mode) as teacher:
        with connected(teacher) as connection:
            connection.sendall(raw_request(BODY))
            assert eventually(lambda: teacher.in_flight == 1)
        assert eventually(lambda: teacher.in_flight == 0)
        assert teacher.billed_calls == 1


def test_drip_sends_a_byte_at_a_time() -> None:
    with LoopbackTeacher(script="drip") as teacher, connected(teacher) as connection:
        connection.sendall(raw_request(BODY))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        assert 0 < len(connection.recv(1000)) < 100
        assert teacher.in_flight == 1


def test_leaving_ends_what_is_under_way() -> None:
    with LoopbackTeacher(script="hang") as teacher:
        connection = connected(teacher)
        connection.sendall(raw_request(BODY))
        assert eventually(lambda: teacher.in_flight == 1)
    with connection:
        try:
            left = connection.recv(1)
        except ConnectionResetError:
            left = b""
        assert left == b""
    assert not [thread for thread in threading.enumerate() if thread.name == "loopback-server"]
    with pytest.raises(ConnectionRefusedError):
        connected(teacher)


def test_the_server_comes_back_at_the_same_address() -> None:
    with pytest.raises(RuntimeError, match="with statement"):
        LoopbackTeacher().url  # noqa: B018
    teacher = LoopbackTeacher()
    with teacher:
        url = teacher.url
        ask(teacher)
    with teacher:
        assert teacher.url == url
        ask(teacher)
    assert teacher.billed_calls == 2


def test_an_error_in_a_script_is_not_hidden() -> None:
    def script(times: int, body: Mapping[str, Any]) -> str:
        raise KeyError("no such row")

    with pytest.raises(KeyError, match="no such row"), LoopbackTeacher(script=script) as teacher:
        assert ask(teacher).status == 500
    with (
        pytest.raises(ValueError, match="no mode 'oops'"),
        LoopbackTeacher(script=lambda *_: "oops") as teacher,
    ):
        assert ask(teacher).status == 500


def test_latency_and_slowness() -> None:
    with LoopbackTeacher(latency=0.05) as teacher:
        before = time.monotonic()
        ask(teacher)
        assert time.monotonic() - before >= 0.05
        teacher.latency, teacher.script = 0.0, "slow"
        before = time.monotonic()
        ask(teacher)
        assert time.monotonic() - before >= 0.2


def test_for_people() -> None:
    with LoopbackTeacher(models=["m-1"]) as teacher:
        assert fetch(teacher, "GET", "/health").document == {"status": "ok"}
        assert [row["id"] for row in fetch(teacher, "GET", "/v1/models").document["data"]] == ["m-1"]
        assert fetch(teacher, "GET", "/v1/elsewhere").status == 404
        assert fetch(teacher, "POST", "/v1/completions", {}).status == 404
        assert fetch(teacher, "GET", "/v1/chat/completions").status == 404
        assert teacher.requests == 0
        assert teacher.others["GET /health"] == 1


def test_any_prefix_and_query_reach_the_model() -> None:
    with LoopbackTeacher() as teacher:
        assert fetch(teacher, "POST", "/gateway/a/v4/chat/completions?beta=true", question()).status == 200
        assert fetch(teacher, "POST", "/messages", question()).document["type"] == "message"


def test_a_handler_may_answer_with_ready_bytes() -> None:
    seen: list[Incoming] = []
    done: list[int] = []

    def handler(incoming: Incoming) -> Outgoing:
        seen.append(incoming)
        return Outgoing(Wire(200, b"{}").encode(), delay=0.01, done=lambda: done.append(1))

    server = Server(handler)
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(raw_request(b"abc", "/p?q=1", X_Thing="T"))
            assert read_replies(connection, 1) == [{}]
    finally:
        server.stop()
    assert (seen[0].path, seen[0].query, seen[0].headers["x-thing"], seen[0].body) == (
        "/p",
        "q=1",
        "T",
        b"abc",
    )
    assert done == [1]
