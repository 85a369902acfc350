"""Many processes, one name: no version is lost, none is given twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from zephyrctl.artifacts.store import Store

COMMITTER = Path(__file__).with_name("committer.py")
PROCESSES, COMMITS = 8, 20


def start(*args: object) -> subprocess.Popen[str]:
    """A committer in its own process."""
    command = [sys.executable, str(COMMITTER), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_eight_processes_with_twenty_commits_each_make_160_versions(tmp_path: Path) -> None:
    root, gate = tmp_path / "artifacts", tmp_path / "go"
    working = [start(root, "prompts", 1000 * n, COMMITS, gate) for n in range(PROCESSES)]
    gate.touch()
    printed: list[str] = []
    for process in working:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        printed += out.split()
    store = Store.open(root)
    expected = list(range(1, PROCESSES * COMMITS + 1))
    assert store.numbers("prompts") == expected
    assert sorted(printed) == sorted(f"prompts@v{n}" for n in expected)
    versions = store.versions("prompts")
    assert len({a.manifest.step_key for a in versions}) == len(expected)
    assert len({a.digest for a in versions}) == len(expected)
    for artifact in versions:
        artifact.check()
    assert list(store.work.iterdir()) == []


def test_the_same_step_in_four_processes_is_done_once(tmp_path: Path) -> None:
    root, gate = tmp_path / "artifacts", tmp_path / "go"
    working = [start(root, "prompts", 7, 1, gate) for _ in range(4)]
    gate.touch()
    results = [(process.communicate(timeout=120), process.returncode) for process in working]
    assert Store.open(root).numbers("prompts") == [1]
    for (out, err), code in results:
        if code == 0:
            assert out.split()[0] == "prompts@v1"
        else:
            assert "another process" in err
    assert any(code == 0 for _, code in results)
