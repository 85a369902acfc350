"""Processes that are started together end together, whatever becomes of one; the error says which, and why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zephyrctl import errors
from zephyrctl.errors import (
    EnvironmentFault,
    Interrupted,
    NotFinite,
    Preempted,
    TryAgain,
    UsageError,
    ZephyrError,
)
from zephyrctl.events import Metric, Note, Progress, Recorder, Table, Warning_, plain
from zephyrctl.training import supervise
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.supervise import Launch, rendezvous, run_ranks, wait_for

in_main = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread alone"
)
START = """
import json, os, pathlib, signal, subprocess, sys, time
folder, rank = pathlib.Path(sys.argv[1]), int(os.environ["RANK"])
(folder / f"pid-{rank}").write_text(str(os.getpid()))

def say(**body):
    os.write(int(os.environ["ZEPHYRCTL_EVENTS"]), (json.dumps(body) + chr(10)).encode())

def leave(kind, code, message):
    body = {"class": kind, "message": message, "hint": "h", "resume": None, "code": code}
    (folder / f"outcome-{rank}.json").write_text(json.dumps(body))
    sys.exit(code)

def meet():
    (folder / f"here-{rank}").touch()
    while len(list(folder.glob("here-*"))) < 2:
        time.sleep(0.01)
"""


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs two processes of a script. What they said is in `seen`, what was delivered in `given`."""
    monkeypatch.setattr(supervise, "GRACE", 0.5)

    def run(script: str, seen: Recorder | None = None, given: list[Any] | None = None, **launch: Any) -> None:
        monkeypatch.setattr(supervise, "PROGRAM", ("-c", START + script))
        choice = EngineChoice(name="ddp", processes=2)
        kept: list[Any] = [] if given is None else given
        run_ranks(
            Launch(choice, tmp_path, **launch),
            seen or Recorder(),
            lambda name, folder: kept.append((name, folder)),
        )

    return run


def gone(folder: Path) -> bool:
    """Whether no process of the run is in the table."""
    return not any(Path("/proc", path.read_text()).exists() for path in folder.glob("pid-*"))


def test_events_and_folders_of_the_leader_arrive_as_they_were_sent(ranks: Any, tmp_path: Path) -> None:
    sent = [
        Note("begun"), Warning_("hm"), Progress("sft", 1, 9), Metric("sft", 1, {"loss": 0.5}),
        Table("t", ("a", "b"), (("1", "2"),)),
    ]  # fmt: skip
    lines = [*map(plain, sent), {"event": "deliver", "name": "final", "folder": "/x/y"}]
    seen, given = Recorder(), []
    ranks(f"print('goes into the log')\nif rank == 0:\n    [say(**line) for line in {lines!r}]", seen, given)
    assert seen.events == sent
    assert given == [("final", Path("/x/y"))]
    assert "goes into the log" in (tmp_path / "rank-0.log").read_text(encoding="utf-8")


def test_a_killed_process_is_named_although_the_other_failed_of_it(ranks: Any, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        ranks("""
meet()
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
while not pathlib.Path("/proc", (folder / "pid-1").read_text(), "stat").read_text().split()[2] in "ZX":
    time.sleep(0.001)
sys.exit("RuntimeError: connection closed by peer")
""")
    assert "process 1 of 2 was killed by SIGKILL" in str(caught.value)
    assert str(tmp_path / "rank-1.log") in str(caught.value.hint)
    assert gone(tmp_path)


def test_the_others_end_also_where_they_notice_nothing(ranks: Any, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="process 0 of 2 ended with 1: ValueError: what it was"):
        ranks("""
meet()
if rank == 0:
    raise ValueError("what it was")
subprocess.Popen(["sleep", "600"])
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
time.sleep(600)
""")
    assert gone(tmp_path)


def test_what_a_failed_process_started_goes_too(ranks: Any, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault):
        ranks("""
meet()
if rank == 1:
    child = subprocess.Popen(["sleep", "600"])
    (folder / "pid-child").write_text(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
""")
    end = time.monotonic() + 20
    while not gone(tmp_path) and time.monotonic() < end:
        time.sleep(0.05)
    assert gone(tmp_path)


@pytest.mark.parametrize(
    ("kind", "code", "cls"), [("EnvironmentFault", 3, EnvironmentFault), ("NotFinite", 9, NotFinite)]
)
def test_the_error_of_a_process_is_the_error_of_the_run(
    kind: str, code: int, cls: type[ZephyrError], ranks: Any
) -> None:
    with pytest.raises(cls) as caught:
        ranks(f"meet()\nif rank == 1:\n    leave('{kind}', {code}, 'said by 1')\nsys.exit('lost a peer')")
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == ("said by 1", "h", code)


def test_of_two_reports_at_once_a_fault_goes_before_a_stop_and_the_first_rank_before_others(
    ranks: Any,
) -> None:
    with pytest.raises(EnvironmentFault, match="memory"):
        ranks("meet()\nleave(*[('Preempted', 75, 'stopped'), ('EnvironmentFault', 3, 'memory')][rank])")
    with pytest.raises(NotFinite, match="from 0"):
        ranks("meet()\nleave('NotFinite', 9, f'from {rank}')")


def test_another_machines_word_explains_what_died_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outcome-1.json").write_text("{", encoding="utf-8")
    choice = EngineChoice(name="ddp", processes=2, machines=2)
    body = {"class": "NotFinite", "message": "loss is nan", "hint": None, "resume": None, "code": 9}
    (tmp_path / "outcome-0.json").write_text(json.dumps(body), encoding="utf-8")
    launch = Launch(choice, tmp_path, machine=1)
    monkeypatch.setattr(supervise, "PROGRAM", ("-c", START + "sys.exit('lost a peer')"))
    with pytest.raises(NotFinite, match="loss is nan"):
        run_ranks(launch, Recorder(), lambda name, folder: None)
    assert (tmp_path / "rank-1.log").is_file()


SAVES = """
told = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda n, frame: told.append(n))
meet()
if rank == 0:
    say(event="note", text="ready")
end = time.monotonic() + 60
while not told and time.monotonic() < end:
    time.sleep(0.02)
"""


def when_ready(*numbers: int, pause: float = 1.0) -> Any:
    """An `emit` that starts sending signals to this process once the processes are ready."""

    def emit(event: Any) -> None:
        if event == Note("ready"):
            for place, number in enumerate(numbers):
                threading.Timer(0.2 + place * pause, os.kill, (os.getpid(), number)).start()

    return emit


@in_main
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_passed_on_once_and_what_was_saved_is_told(
    number: int, ranks: Any, tmp_path: Path
) -> None:
    with pytest.raises(Preempted, match="saved"):
        ranks(
            SAVES + "time.sleep(0.5)\n(folder / f'told-{rank}').write_text(str(told))\n"
            "leave('Preempted', 75, 'saved')",
            when_ready(number),
        )
    assert [(tmp_path / f"told-{r}").read_text() for r in (0, 1)] == [str([int(number)])] * 2


@in_main
def test_a_second_signal_ends_processes_that_ignore_the_first(ranks: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        ranks(SAVES + "time.sleep(600)", when_ready(signal.SIGTERM, signal.SIGTERM))
    assert caught.value.exit_code == 143
    assert gone(tmp_path)


@in_main
def test_a_signal_before_a_process_can_take_it_is_no_fault(ranks: Any, tmp_path: Path) -> None:
    with pytest.raises(Preempted) as caught:
        ranks(
            "meet()\nif rank == 0:\n    say(event='note', text='ready')\ntime.sleep(60)",
            when_ready(signal.SIGTERM),
        )
    assert caught.value.exit_code == 75
    assert gone(tmp_path)


@in_main
def test_a_fault_while_stopping_is_told_as_a_fault(ranks: Any) -> None:
    with pytest.raises(EnvironmentFault, match="disk is full"):
        ranks(SAVES + "sys.exit('disk is full')", when_ready(signal.SIGUSR1))


@in_main
def test_a_signal_after_the_last_step_takes_nothing_away(ranks: Any) -> None:
    given: list[Any] = []
    ranks(
        SAVES + "if rank == 0:\n    say(event='deliver', name='final', folder='/f')",
        when_ready(signal.SIGTERM),
        given,
    )
    assert given == [("final", Path("/f"))]


def test_the_command_of_every_machine_is_as_its_launcher_sets_it(tmp_path: Path) -> None:
    choice = EngineChoice(name="ddp", processes=4, machines=2)
    launch = Launch(choice, tmp_path / "a folder", machine=1, address="node1", port=29500)
    assert list(launch.ranks) == [2, 3]
    added, command = launch.command(1)
    assert {k: added[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")} == {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    assert (added["MASTER_ADDR"], added["MASTER_PORT"]) == ("node1", "29500")
    assert command[0] == sys.executable
    first = launch.shell_lines()[0]
    assert "RANK=2" in first
    assert first.endswith(f"'{tmp_path / 'a folder'}'")


def test_where_processes_meet() -> None:
    assert rendezvous("node1:29500") == ("node1", 29500)
    host, port = rendezvous(None)
    assert (host, port > 1023) == ("127.0.0.1", True)
    for wrong in ("node1", ":29500", "node1:port"):
        with pytest.raises(UsageError, match="host:port"):
            rendezvous(wrong)


def test_waiting_has_an_end(tmp_path: Path) -> None:
    naps: list[float] = []
    wait_for(tmp_path, seconds=1, what="it", nap=naps.append)
    assert naps == []
    with pytest.raises(TryAgain, match="did not appear"):
        wait_for(tmp_path / "never", seconds=-1, what="it", nap=naps.append)


def test_every_error_can_be_told_across_processes() -> None:
    error = errors.MissingExtra("deepspeed", "zero")
    told = supervise._rebuilt({"class": "MissingExtra", **error.as_dict()})
    assert (type(told), told.message, told.hint) == (errors.MissingExtra, error.message, error.hint)


def test_a_process_that_failed_ends_whatever_it_has_running() -> None:
    script = (
        "import threading, time; from zephyrctl.training.worker import end\n"
        "threading.Thread(target=time.sleep, args=(600,)).start(); end(9)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 9


def test_a_full_disk_is_said_where_no_process_could_say_it(
    ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=4096))
    with pytest.raises(EnvironmentFault, match="no space left"):
        ranks("meet()\nsys.exit(3)")
