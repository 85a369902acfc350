"""The adaptive limit against simulated servers, in virtual time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.providers.calling.limiter import START, Limiter

ROW_DELAY = 0.05


@dataclass
class Server:
    """Bears `capacity` calls in flight (a function of time); refusals come after `refusal` seconds."""

    capacity: Callable[[float], int]
    latency: Callable[[random.Random], float]
    refusal: float = 0.002
    working: int = 0


@dataclass
class Course:
    makespan: float
    refused: int
    most: int


def drive(server: Server, limiter: Limiter, calls: int, seed: int = 0) -> Course:
    """`calls` rows through the limiter; a refused row comes back after a short while, as the caller does it."""
    draw = random.Random(seed)
    events: list[tuple[float, int, str, int]] = []
    now, order, waiting, done, refused, most = 0.0, 0, calls, 0, 0, 0

    def later(seconds: float, what: str, ticket: int = 0) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (now + seconds, order, what, ticket))

    while done < calls:
        while waiting and limiter.room:
            waiting -= 1
            ticket = limiter.sent()
            most = max(most, limiter.in_flight)
            if server.working >= server.capacity(now):
                later(server.refusal, "refused", ticket)
            else:
                server.working += 1
                later(server.latency(draw), "answered", ticket)
        now, _, what, ticket = heapq.heappop(events)
        if what == "answered":
            server.working -= 1
            done += 1
            limiter.answered(ticket)
        elif what == "refused":
            refused += 1
            limiter.limited(ticket)
            later(ROW_DELAY * (1 + draw.random()), "again")
        else:
            waiting += 1
    assert limiter.in_flight == 0
    return Course(now, refused, most)


def steady(capacity: int, latency: float = 0.1, spread: float = 0.0, refusal: float = 0.002) -> Server:
    return Server(lambda now: capacity, lambda draw: latency * (1 + spread * draw.random()), refusal)


@pytest.mark.parametrize("ceiling", [32, 100, 400])
@pytest.mark.parametrize("spread", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("refusal", [0.0, 0.01, 0.1])
def test_a_server_that_bears_ten(ceiling: int, spread: float, refusal: float) -> None:
    course = drive(steady(10, 0.1, spread, refusal), Limiter(ceiling), 600)
    ideal = 600 / 10 * 0.1 * (1 + spread / 2)
    assert course.refused <= 60
    assert course.makespan <= 1.2 * ideal


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 200),
    ceiling=st.integers(1, 400),
    spread=st.sampled_from([0.0, 0.3, 2.0]),
    refusal=st.sampled_from([0.0, 0.005, 0.05]),
    seed=st.integers(0, 99),
)
def test_any_capacity_is_found(capacity: int, ceiling: int, spread: float, refusal: float, seed: int) -> None:
    usable = min(capacity, ceiling)
    calls = max(400, 80 * usable)
    course = drive(steady(capacity, 0.1, spread, refusal), Limiter(ceiling), calls, seed)
    ideal = calls / usable * 0.1 * (1 + spread / 2)
    assert course.most <= ceiling
    assert course.refused <= 0.1 * calls
    assert course.makespan <= 1.3 * ideal + 1.0


def test_nothing_is_refused_and_the_ceiling_is_reached() -> None:
    limiter = Limiter(400)
    course = drive(steady(10_000), limiter, 20_000)
    assert (course.refused, course.most, limiter.limit) == (0, 400, 400)
    assert course.makespan <= 1.2 * 20_000 / 400 * 0.1


def test_it_begins_low_and_doubles_in_a_round_trip() -> None:
    limiter = Limiter(1000)
    tickets = [limiter.sent() for _ in range(START)]
    assert not limiter.room
    for ticket in tickets:
        limiter.answered(ticket)
        limiter.sent()
        limiter.sent()
    assert limiter.limit == 2 * START


def test_one_cut_for_one_episode() -> None:
    limiter = Limiter(100, start=100)
    tickets = [limiter.sent() for _ in range(100)]
    for ticket in tickets[80:]:
        limiter.limited(ticket)
    assert limiter.limit == 80
    for ticket in tickets[:80]:
        limiter.answered(ticket)
    assert limiter.limit == 80


def test_no_call_takes_the_place_of_a_refused_one() -> None:
    limiter = Limiter(16)
    tickets = [limiter.sent() for _ in range(16)]
    for ticket in tickets[10:]:
        limiter.limited(ticket)
        assert not limiter.room
    assert limiter.in_flight == 10


def test_a_server_that_grows_is_noticed_and_one_that_shrinks_too() -> None:
    growing = Server(lambda now: 10 if now < 20 else 60, lambda draw: 0.1)
    assert drive(growing, Limiter(100), 6000).makespan <= 20 + 4000 / 60 * 0.1 * 3 + 5
    shrinking = Server(lambda now: 60 if now < 5 else 8, lambda draw: 0.1)
    course = drive(shrinking, Limiter(100), 4000)
    assert course.refused <= 400


def test_trials_become_rare() -> None:
    short = drive(steady(10), Limiter(100), 1_000).refused
    long = drive(steady(10), Limiter(100), 32_000).refused
    assert long - short <= 12


def test_other_failures_stop_growth_but_do_not_shrink() -> None:
    limiter = Limiter(100)
    tickets = [limiter.sent() for _ in range(16)]
    for ticket in tickets[:4]:
        limiter.troubled(ticket)
    assert limiter.limit == 16
    for ticket in tickets[4:]:
        limiter.answered(ticket)
    assert limiter.limit == 16


def test_one_in_flight_is_the_least() -> None:
    limiter = Limiter(4)
    for _ in range(50):
        assert limiter.room
        limiter.limited(limiter.sent())
    assert limiter.limit == 1


def test_a_lowered_ceiling_holds() -> None:
    limiter = Limiter(100, start=100)
    limiter.lower(7)
    course = drive(steady(1000), limiter, 500)
    assert (course.most, limiter.limit) == (7, 7)


@settings(max_examples=100, deadline=None)
@given(
    ceiling=st.integers(1, 50),
    steps=st.lists(st.tuples(st.sampled_from(["send", "ok", "limit", "trouble"]), st.integers(0, 49))),
)
def test_whatever_happens_the_limit_stays_in_bounds(ceiling: int, steps: list[tuple[str, int]]) -> None:
    limiter = Limiter(ceiling)
    out: list[int] = []
    for what, place in steps:
        if what == "send":
            if limiter.room:
                out.append(limiter.sent())
        elif out:
            ticket = out.pop(place % len(out))
            {"ok": limiter.answered, "limit": limiter.limited, "trouble": limiter.troubled}[what](ticket)
        assert 1 <= limiter.limit <= ceiling
        assert limiter.in_flight == len(out)
        assert limiter.room or out
