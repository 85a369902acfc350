"""Kills and signals: what arrived is paid once, what may be lost is counted, the end is always the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.calling.stopping import Stop
from zephyrctl.testing.teacher import LoopbackTeacher

ASKS = 48
WORKERS = 6
AHEAD = 1
"""Intents written ahead of the wire: a quarter of the calls in flight at most."""

CHILD = """
import json, sys
from pathlib import Path
from zephyrctl.errors import ZephyrError
from zephyrctl.ledger.entries import Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.base import Ask, Sampling
from zephyrctl.providers.calling.caller import Caller, CallSettings
from zephyrctl.providers.registry import make_provider
from zephyrctl.records import Message
path, out, asks, workers, grace, parts = sys.argv[1:]
sampling = Sampling(temperature=1.0, seed=3)
questions = [Ask((Message(role="user", content=f"Add {n} and 4."),), sampling) for n in range(int(asks))]
settings = CallSettings(concurrency=int(workers), grace=float(grace))
teacher = make_provider(parse_model("gpt-4o-mini"))
try:
    with Ledger.open(Path(path)) as ledger, Caller(ledger, run=Run("run"), settings=settings) as caller:
        size = max(1, len(questions) // int(parts))
        cut = [questions[start : start + size] for start in range(0, len(questions), size)]
        answers = [a for part in caller.overlap(cut, lambda part: caller.ask(teacher, part, task="t")) for a in part]
except ZephyrError as error:
    print(type(error).__name__, error.message, file=sys.stderr)
    sys.exit(error.exit_code)
Path(out).write_text(json.dumps([answer.text for answer in answers]), encoding="utf-8")
"""


def start(
    teacher: LoopbackTeacher, folder: Path, *, asks: int = ASKS, grace: float = 5.0, parts: int = 1
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OPENAI_API_KEY": "sk-test-123456", "OPENAI_BASE_URL": teacher.openai_url}
    names = [
        str(folder / "ledger"),
        str(folder / "out.json"),
        str(asks),
        str(WORKERS),
        str(grace),
        str(parts),
    ]
    return subprocess.Popen([sys.executable, "-c", CHILD, *names], env=environment)


def wait_for(condition: Callable[[], bool], child: subprocess.Popen[bytes]) -> None:
    """Until the condition holds or the child ends."""
    while not condition() and child.poll() is None:
        time.sleep(0.002)


def finish(teacher: LoopbackTeacher, folder: Path, **settings: int) -> list[str]:
    assert start(teacher, folder, **settings).wait(120) == 0
    answers: list[str] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    return answers


def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(7)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    with LoopbackTeacher(latency=0.03) as teacher:
        expected = finish(teacher, tmp_path / "whole")
        assert teacher.billed_calls == ASKS
    kills = 0
    with LoopbackTeacher(latency=0.03) as teacher:
        for _ in range(3):
            child = start(teacher, tmp_path / "killed")
            goal = teacher.requests + rng.randint(3, 12)
            wait_for(lambda goal=goal: teacher.requests >= goal, child)  # type: ignore[misc]
            time.sleep(rng.random() * 0.04)
            child.kill()
            kills += child.wait() == -signal.SIGKILL
        assert finish(teacher, tmp_path / "killed") == expected
        billed, origin = teacher.billed_calls, teacher.openai_url
    assert kills == 3
    with Ledger.open(tmp_path / "killed" / "ledger") as ledger:
        stats, doubts = ledger.stats("run"), ledger.in_doubt("run")
    assert stats.calls == ASKS
    assert ASKS <= billed <= ASKS + stats.in_doubt
    assert stats.in_doubt <= kills * (WORKERS + AHEAD)
    assert "inflight" not in stats.states
    assert {place: calls for place, (calls, _) in doubts.items()} == (
        {("openai", origin, "openai:gpt-4o-mini"): stats.in_doubt} if stats.in_doubt else {}
    )


@pytest.mark.parametrize("parts", [1, 6])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_calls_in_flight_arrive(tmp_path: Path, number: signal.Signals, parts: int) -> None:
    with LoopbackTeacher(latency=0.15) as teacher:
        child = start(teacher, tmp_path, parts=parts)
        wait_for(lambda: teacher.requests >= WORKERS * 2, child)
        child.send_signal(number)
        assert child.wait(30) == 128 + number
        billed = teacher.billed_calls
        assert billed < ASKS
        with Ledger.open(tmp_path / "ledger") as ledger:
            assert ledger.stats("run").calls == billed
            assert ledger.stats("run").in_doubt == 0
        if number == signal.SIGINT:
            finish(teacher, tmp_path, parts=parts)
            assert teacher.billed_calls == ASKS


@pytest.mark.parametrize("parts", [1, 2])
def test_a_second_signal_leaves_at_once(tmp_path: Path, parts: int) -> None:
    with LoopbackTeacher(script="hang") as teacher:
        child = start(teacher, tmp_path, asks=4, grace=600.0, parts=parts)
        wait_for(lambda: teacher.requests >= 4, child)
        child.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
    with Ledger.open(tmp_path / "ledger") as ledger:
        assert ledger.stats("run").in_doubt == 4


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGINT, before)
