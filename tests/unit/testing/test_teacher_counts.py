"""What the loopback teacher counts: bills per body and per key, limits, refused parameters, money."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_clients import Got, ask, connected, eventually, fetch, question, raw_request

from zephyrctl.money import Price
from zephyrctl.testing.allowance import Allowance
from zephyrctl.testing.teacher import LoopbackTeacher

SLOW_OF_40 = 14
"""How many of the bodies below fall into a share of a quarter."""


def text_of(got: Got) -> str:
    return str(got.document["choices"][0]["message"]["content"])


@contextmanager
def under_way(teacher: LoopbackTeacher, bodies: Iterable[dict[str, Any]]) -> Iterator[list[socket.socket]]:
    """Calls sent and not waited for, each on a connection of its own."""
    with ExitStack() as open_ones:
        connections = []
        for body in bodies:
            connections.append(open_ones.enter_context(connected(teacher)))
            connections[-1].sendall(raw_request(json.dumps(body).encode()))
        yield connections


def test_bills_by_body_and_by_key() -> None:
    with LoopbackTeacher(script=["ok", "500", "ok"]) as teacher:
        ask(teacher, question("a"))
        ask(teacher, question("b"))
        ask(teacher, question("a"), headers={"authorization": "", "x-api-key": "sk-ant-1"})
        ask(teacher, question("c"), headers={"authorization": "Bearer sk-2"})
    canonical = {text: json.dumps(question(text), sort_keys=True) for text in "abc"}
    assert teacher.billed == {canonical["a"]: 2, canonical["c"]: 1}
    assert teacher.billed_by_key == {"sk-test-1234567": 1, "sk-ant-1": 1, "sk-2": 1}
    assert (teacher.requests, teacher.billed_calls) == (4, 3)
    assert teacher.bodies == [question(text) for text in "abac"]


def test_a_script_may_go_by_body_and_by_times() -> None:
    with LoopbackTeacher(script=lambda times, body: "429" if times < 2 else "ok") as teacher:
        statuses = [ask(teacher, question(text)).status for text in "aabba"]
    assert statuses == [429, 429, 429, 429, 200]


def test_money() -> None:
    with LoopbackTeacher(price=Price(input=10.0, output=1000.0), answer=lambda body: "two words") as teacher:
        ask(teacher, question("One two three."))
        assert teacher.billed_uusd == 3 * 10 + 2 * 1000
        teacher.script = "hang"
        with under_way(teacher, [question("One two three.")]):
            assert eventually(lambda: teacher.requests == 2)
        teacher.script = "500"
        ask(teacher)
    assert teacher.billed_uusd == 2 * (3 * 10 + 2 * 1000)
    assert teacher.billed_usd == pytest.approx(0.00406)


def test_more_at_once_than_allowed_is_rejected() -> None:
    with LoopbackTeacher(script="hang", max_in_flight=3) as teacher:
        with under_way(teacher, [question(str(n)) for n in range(3)]):
            assert eventually(lambda: teacher.in_flight == 3)
            assert [ask(teacher).status for _ in range(5)] == [429] * 5
        assert eventually(lambda: teacher.in_flight == 0)
        teacher.script = "ok"
        assert ask(teacher).status == 200
    assert (teacher.rejected, teacher.billed_calls, teacher.requests) == (5, 4, 9)
    assert teacher.most_in_flight == 3


def test_a_rejection_says_when_to_come_back_only_if_told() -> None:
    with LoopbackTeacher(max_in_flight=0) as teacher:
        assert "retry-after" not in ask(teacher).headers
        teacher.headers = {"Retry-After": "3"}
        got = ask(teacher, api="anthropic")
        assert got.headers["retry-after"] == "3"
        assert got.document["error"]["type"] == "rate_limit_error"


def test_calls_a_minute() -> None:
    with LoopbackTeacher(rpm=6) as teacher:
        first, second = ask(teacher), ask(teacher)
        assert (first.status, second.status, teacher.rejected, teacher.billed_calls) == (200, 429, 1, 1)
        assert {got.headers["x-ratelimit-remaining-requests"] for got in (first, second)} == {"0"}
        assert first.headers["x-ratelimit-limit-requests"] == "6"
        assert 0 < float(second.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 10
        assert ask(teacher, api="anthropic").headers["anthropic-ratelimit-requests-limit"] == "6"


@given(rpm=st.floats(1, 6000), steps=st.lists(st.floats(0, 5), max_size=60))
def test_an_allowance_is_never_exceeded(rpm: float, steps: list[float]) -> None:
    now = 100.0
    allowance = Allowance(rpm, clock=lambda: now)
    taken = 0
    for step in steps:
        now += step
        taken += allowance.take()
        assert taken <= max(1.0, rpm / 60) + (now - 100) * rpm / 60 + 1e-6
    now += 60 / rpm + 0.001
    assert allowance.take()


def test_rejections_do_not_use_the_script_up() -> None:
    with LoopbackTeacher(script=["500", "ok"], max_in_flight=0) as teacher:
        ask(teacher)
        teacher.max_in_flight = None
        assert [ask(teacher).status for _ in range(2)] == [500, 200]


def test_parameters_and_models_that_are_not_taken() -> None:
    rules = {"temperature": (), "top_p": (1, 1.0)}
    with LoopbackTeacher(accepts=rules, models={"gpt-test"}) as teacher:
        assert ask(teacher, question(top_p=1.0)).status == 200
        one = ask(teacher, question(temperature=0.0))
        assert (one.status, one.document["error"]["code"]) == (400, "unsupported_parameter")
        other = ask(teacher, question(top_p=0.9)).document["error"]
        assert (other["code"], other["param"]) == ("unsupported_value", "top_p")
        assert (
            "temperature"
            in ask(teacher, question(temperature=1), api="anthropic").document["error"]["message"]
        )
        assert ask(teacher, question(model="gpt-old")).status == 404
        assert teacher.refused == {"temperature": 2, "top_p": 1, "model": 1}
        assert (teacher.requests, teacher.billed_calls, len(teacher.bodies)) == (5, 1, 5)


def test_equal_bodies_get_equal_answers_unless_varied() -> None:
    drawn = question("Add 21 and 38.", temperature=1.0)
    with LoopbackTeacher() as teacher:
        assert len({text_of(ask(teacher, drawn)) for _ in range(8)}) == 1
        teacher.varied = True
        assert len({text_of(ask(teacher, drawn)) for _ in range(8)}) > 1
        assert len({text_of(ask(teacher, question(temperature=0.0))) for _ in range(8)}) == 1


def test_a_share_of_bodies_is_slow() -> None:
    bodies = [question(str(n)) for n in range(40)]
    with LoopbackTeacher(latency=0.001, slow_share=(0.25, 1e6)) as teacher:
        slow = []
        for times in (1, 2):
            with under_way(teacher, bodies) as connections:
                arrived = times * len(bodies)
                assert eventually(lambda n=arrived: teacher.requests == n)  # type: ignore[misc]
                assert eventually(lambda: teacher.in_flight == SLOW_OF_40)
                ready, _, _ = select.select(connections, [], [], 0)
                slow.append([n for n, connection in enumerate(connections) if connection not in ready])
            assert eventually(lambda: teacher.in_flight == 0)
    assert slow[0] == slow[1]
    assert len(slow[0]) == SLOW_OF_40


def test_fast_gives_one_answer_and_keeps_nothing() -> None:
    price = Price(input=1.0, output=1.0)
    with LoopbackTeacher(fast=True, record_bodies=False, script=["ok", "429", "ok"], price=price) as teacher:
        got = [ask(teacher, question(text)) for text in "abcd"]
        assert [one.status for one in got] == [200, 429, 200, 200]
        assert got[0].body == got[2].body
        assert got[0].document["model"] == "gpt-test-2026"
        assert ask(teacher, question(model="other"), api="anthropic").document["model"] == "other-2026"
        assert teacher.billed == {"": 4}
        assert teacher.billed_uusd == 4 * 60
        assert teacher.bodies == []


def test_hashes_in_place_of_bodies() -> None:
    with LoopbackTeacher() as kept, LoopbackTeacher(record_bodies=False) as hashed:
        for teacher in (kept, hashed):
            for text in "aab":
                ask(teacher, question(text))
        one, other = fetch(kept, "GET", "/stats").document, fetch(hashed, "GET", "/stats").document
    assert hashed.bodies == []
    assert one == other
    assert sorted(one["billed_by_body"].values()) == [1, 2]
    assert (one["requests"], one["billed"], one["most_in_flight"]) == (3, 3, 1)
    assert "sk-test" not in json.dumps(one)
