"""Real processes that train together: when one is lost, all are gone within seconds, and the same job goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs import delivered, job, train

from zephyrctl.errors import EnvironmentFault, NotFinite, Preempted
from zephyrctl.events import Event, Metric
from zephyrctl.training import checkpoint, supervise
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.signals import PARENT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("engines"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at the process table in /proc"),
]
in_main = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread alone"
)
TWO = EngineChoice(name="ddp", processes=2)
MOST = 30.0
"""Seconds in which all processes have to be gone."""


def workers(parent: int) -> dict[int, int]:
    """The processes that `parent` started and watches, by rank, zombies left out."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environ = dict(
                one.split("=", 1) for one in (folder / "environ").read_text().split("\0") if "=" in one
            )
            alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (OSError, UnicodeDecodeError):
            continue
        if alive and environ.get(PARENT) == str(parent):
            found[int(environ["RANK"])] = int(folder.name)
    return found


def at(step: int, act: Callable[[], None]) -> Any:
    """An `emit` that acts once `step` is recorded."""

    def emit(event: Event) -> None:
        if isinstance(event, Metric) and event.step == step and "loss" in event.values:
            act()

    return emit


def seconds_until_gone(parent: int, since: float) -> float:
    """How long the processes of `parent` were there yet."""
    while workers(parent) and time.monotonic() - since < 2 * MOST:
        time.sleep(0.05)
    return time.monotonic() - since


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What two processes make that nobody disturbs."""
    one = job("sft", tiny, tmp_path_factory.mktemp("whole"), TWO)
    train(one)
    return delivered(one)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_killed_takes_all_along_and_the_same_job_goes_on(
    rank: int, tiny: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    killed: list[float] = []

    def kill() -> None:
        os.kill(workers(os.getpid())[rank], signal.SIGKILL)
        killed.append(time.monotonic())

    one = job("sft", tiny, tmp_path, TWO, save_steps=1)
    with pytest.raises(EnvironmentFault) as caught:
        train(replace(one, emit=at(4, kill)))
    seconds = seconds_until_gone(os.getpid(), killed[0])
    print(f"process {rank} killed: all gone after {seconds:.1f} s")
    assert seconds < MOST
    assert f"process {rank} of 2 was killed by SIGKILL" in str(caught.value)
    assert str(tmp_path / "job" / f"rank-{rank}.log") in str(caught.value.hint)
    assert checkpoint.newest(tmp_path).step >= 3
    train(one)
    assert delivered(one) == whole


def test_killing_the_one_that_watches_kills_all(tiny: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from jobs import job, train; from zephyrctl.training.engine import EngineChoice\n"
        "one = job('sft', Path(sys.argv[1]), Path(sys.argv[2]), EngineChoice(name='ddp', processes=2), epochs=200)\n"
        "train(replace(one, emit=lambda event: print(type(event).__name__, flush=True)))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )
    assert run.stdout is not None
    assert any(line == "Metric\n" for line in run.stdout)
    assert sorted(workers(run.pid)) == [0, 1]
    run.kill()
    seconds = seconds_until_gone(run.pid, time.monotonic())
    run.wait()
    print(f"the watching process killed: all gone after {seconds:.1f} s")
    assert seconds < MOST


@pytest.mark.parametrize(("fault", "cls", "code"), [("memory", EnvironmentFault, 3), ("nan", NotFinite, 9)])
def test_what_one_process_meets_is_the_error_of_the_run(
    fault: str, cls: Any, code: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "PROGRAM", (str(Path(__file__).parent / "faulty_worker.py"),))
    monkeypatch.setenv("FAULT", fault)
    with pytest.raises(cls) as caught:
        train(job("sft", tiny, tmp_path, TWO))
    assert caught.value.exit_code == code
    assert ("out of memory while training" if fault == "memory" else "at step 3 of 8") in caught.value.message
    assert not workers(os.getpid())


@in_main
def test_a_process_that_does_not_hear_the_signal_stops_with_the_others(
    tiny: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job("sft", tiny, tmp_path, TWO)
    with monkeypatch.context() as patch:
        patch.setattr(supervise, "PROGRAM", (str(Path(__file__).parent / "faulty_worker.py"),))
        patch.setenv("FAULT", "deaf")
        with pytest.raises(Preempted, match="the checkpoint of step"):
            train(replace(one, emit=at(3, lambda: os.kill(os.getpid(), signal.SIGTERM))))
    assert 3 <= checkpoint.newest(tmp_path).step < 8
    train(one)
    assert delivered(one) == whole
