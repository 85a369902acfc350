"""Real processes, really killed (SIGKILL) inside real system calls, by strace."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zephyrctl.artifacts.store import Store

COMMITTER = Path(__file__).with_name("committer.py")
POINTS = {
    "fsync": (1, 6, 12, 16, 18),
    "rename": (1, 2, 3, 4),
    "mkdir": (1, 6),
    "unlink,unlinkat": (2,),
}


@pytest.fixture(scope="module")
def strace() -> str:
    """The path of a strace that may trace here."""
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    trial = subprocess.run([found, "-e", "trace=none", "true"], capture_output=True, check=False, timeout=60)
    if trial.returncode != 0:
        pytest.skip("strace may not trace processes here")
    return found


def commit(root: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    """One commit in a process of its own."""
    command = [*prefix, sys.executable, str(COMMITTER), str(root), "prompts", "1", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def kill_in(strace: str, root: Path, calls: str, when: int) -> str:
    """What the store held after a kill in the `when`-th such call: absent, whole, or missed (none)."""
    inject = f"inject={calls}:signal=KILL:when={when}"
    done = commit(root, strace, "-e", f"trace={calls}", "-e", inject, "-o", "/dev/null")
    found = Store.open(root).versions("prompts")
    for artifact in found:
        assert artifact.problems() == [], (calls, when)
    assert len(found) <= 1
    if done.returncode == 0:
        return "missed"
    again = commit(root)
    assert again.returncode == 0, again.stderr
    assert again.stdout.split() == (["prompts@v1", "again"] if found else ["prompts@v1"]), (calls, when)
    whole = Store.open(root)
    assert whole.numbers("prompts") == [1]
    whole.resolve("prompts").check()
    return "whole" if found else "absent"


def test_killed_in_a_system_call_the_version_is_absent_or_whole(tmp_path: Path, strace: str) -> None:
    points = [(calls, when) for calls, numbers in POINTS.items() for when in numbers]
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda p: kill_in(strace, tmp_path / f"{p[0]}-{p[1]}" / "artifacts", *p), points)
        )
    assert found.count("absent") >= 6, list(zip(points, found, strict=True))
    assert found.count("whole") >= 1, list(zip(points, found, strict=True))
