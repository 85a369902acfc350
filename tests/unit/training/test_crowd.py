"""Work shared out among processes: in order, the same for any number of them, and never orphaned."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zephyrctl.errors import EnvironmentFault
from zephyrctl.training import crowd
from zephyrctl.training.crowd import CHUNK, in_chunks

ENDLESS = """
import os, sys, time
from zephyrctl.training.crowd import in_chunks

def work(tool, chunk):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    list(in_chunks(list(range(5000)), None, work, 2))
"""


def test_chunks_come_back_in_order_from_any_number_of_processes() -> None:
    rows = list(range(2 * CHUNK + 7))
    alone = list(in_chunks(rows, [-1], operator.add))
    assert alone == [[-1, *rows[:CHUNK]], [-1, *rows[CHUNK : 2 * CHUNK]], [-1, *rows[2 * CHUNK :]]]
    assert list(in_chunks(rows, [-1], operator.add, 2)) == alone
    assert list(in_chunks([], [-1], operator.add, 4)) == []


def test_processes_are_started_for_many_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Pool:
        def __init__(self, processes: int, **kwargs: object) -> None:
            asked.append(processes)
            raise RuntimeError

    monkeypatch.setattr(crowd, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(crowd, "_processors", lambda: 3)
    list(in_chunks([0] * (crowd.WORTH_IT - 1), [], operator.add))
    with pytest.raises(RuntimeError):
        list(in_chunks([0] * crowd.WORTH_IT, [], operator.add))
    assert asked == [3]


def test_a_workers_error_is_the_callers() -> None:
    with pytest.raises(TypeError):
        list(in_chunks([1] * (2 * CHUNK), None, operator.add, 2))


def test_a_killed_worker_is_a_fault_of_the_machine() -> None:
    with pytest.raises(EnvironmentFault, match="was killed"):
        list(in_chunks([0] * (2 * CHUNK), 1, _die, 2))


def _die(tool: int, chunk: list[int]) -> None:
    os._exit(tool)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        os.kill(parent.pid, signal.SIGKILL)
        until = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
            time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
