"""A stage that dies before or right after any single write to its ledger goes on as if nothing had happened."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fault_job import KEY, Job
from zephyrctl.cli.app import run
from zephyrctl.errors import EnvironmentFault
from zephyrctl.ledger.writer import Writer
from zephyrctl.testing.teacher import LoopbackTeacher

ROWS = 6
COMMIT = Writer._commit


class Dying:
    """Lets `points` writes through, and none afterwards; `kept` = the last one reaches the disk but nobody is told."""

    def __init__(self, points: int | None, *, kept: bool) -> None:
        self.left = points
        self.kept = kept
        self.writes = 0

    def __call__(self, writer: Writer, connection: sqlite3.Connection, group: list[Any]) -> list[Any]:
        if not group:
            return []
        if self.left is not None and self.writes >= self.left:
            if self.kept and self.writes == self.left:
                COMMIT(writer, connection, group)
            self.writes += 1
            raise EnvironmentFault("the process is gone")
        self.writes += 1
        return COMMIT(writer, connection, group)


def _gen_sft() -> int:
    return run(
        ["gen-sft", "--teacher", "box:teacher", "--prompts", "prompts.jsonl", "--rounds", "1",
         "--concurrency", "3", "--yes"]
    )  # fmt: skip


def _start(folder: Path, teacher: LoopbackTeacher, monkeypatch: pytest.MonkeyPatch) -> Job:
    job = Job(folder, teacher, rows=ROWS).prepare()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BOX_KEY", KEY)
    return job


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int, int]:
    """An uninterrupted run: its data, what it paid for, and how often it wrote."""
    with pytest.MonkeyPatch.context() as patch, LoopbackTeacher() as teacher:
        counter = Dying(None, kept=False)
        patch.setattr(Writer, "_commit", lambda writer, connection, group: counter(writer, connection, group))
        job = _start(tmp_path_factory.mktemp("whole"), teacher, patch)
        assert _gen_sft() == 0
        return job.data(), teacher.billed_calls, counter.writes


@pytest.mark.parametrize("kept", [False, True], ids=["before", "after"])
def test_dead_at_every_write(
    kept: bool, whole: tuple[dict[str, bytes], int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, calls, writes = whole
    reached = 0
    for point in range(writes + 2):
        with LoopbackTeacher() as teacher, monkeypatch.context() as patch:
            job = _start(tmp_path / str(point), teacher, patch)
            dying = Dying(point, kept=kept)
            with patch.context() as dead:
                dead.setattr(Writer, "_commit", lambda w, c, g, dying=dying: dying(w, c, g))
                code = _gen_sft()
            if code != 0:
                reached += 1
            doubtful = job.in_flight() if (job.folder / "artifacts" / "ledger.sqlite").exists() else 0
            assert _gen_sft() == 0
            assert job.data() == expected
            assert calls <= teacher.billed_calls <= calls + doubtful
            assert job.query("SELECT COUNT(*) FROM attempt WHERE state = 'in_doubt'")[0][0] == doubtful
            assert job.query("SELECT reserved_uusd FROM spend WHERE scope = 'all'")[0][0] == 0
    assert reached >= writes // 2
