"""`--max-usd` holds with hundreds of calls in flight, over kills and restarts; what is paid can be closed as it is."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fault_job import Job
from zephyrctl.testing.teacher import LoopbackTeacher

LIMIT = 1_000_000
ROWS = 500


def _spent(job: Job) -> int:
    settled, doubt = job.query("SELECT settled_uusd, doubt_uusd FROM spend WHERE scope = 'all'")[0]
    return int(settled) + int(doubt)


def _one_dollar(folder: Path, seed: int) -> None:
    draw = random.Random(seed)
    with LoopbackTeacher(latency=draw.choice([0.0, 0.05, 0.2])) as teacher:
        job = Job(
            folder, teacher, rows=ROWS, concurrency=400, dollars=draw.choice([20.0, 30.0, 60.0])
        ).prepare()
        for _ in range(draw.randint(0, 3)):
            job.kill_after(draw.uniform(0.0, 1.0), "--max-usd", "1.00")
            if (folder / "artifacts" / "ledger.sqlite").exists():
                assert _spent(job) <= LIMIT
        done = job.run("--max-usd", "1.00")
        assert done.returncode == 7, done.stderr
        assert _spent(job) <= LIMIT
        assert job.run("--max-usd", "1.00").returncode == 7
        asked, spent = teacher.requests, _spent(job)
        closed = job.run("--max-usd", "1.00", "--accept-partial")
        assert closed.returncode == 0, closed.stderr
        assert (teacher.requests, _spent(job)) == (asked, spent)
        manifest = json.loads((folder / "artifacts" / "sft-data" / "v1" / "manifest.json").read_text())
        assert manifest["counts"]["of"] == 2 * ROWS  # a pair for each round
        assert 0 < manifest["counts"]["finished"] < 2 * ROWS
        checked = job.zephyrctl("artifacts", "verify", "sft-data")
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("seed", range(3))
def test_one_dollar_is_never_crossed(seed: int, tmp_path: Path) -> None:
    _one_dollar(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 20))
def test_one_dollar_is_never_crossed_again_and_again(seed: int, tmp_path: Path) -> None:
    _one_dollar(tmp_path, seed)


def test_two_processes_share_one_limit(tmp_path: Path) -> None:
    with LoopbackTeacher(latency=0.05) as teacher:
        job = Job(tmp_path, teacher, rows=ROWS, concurrency=200, dollars=30.0).prepare()
        (tmp_path / "zephyrctl.yaml").write_text((tmp_path / "zephyrctl.yaml").read_text() + "max_usd: 1.0\n")
        both = [job.start(), job.start("--out", "other", "--set", "temperature=0.5")]
        ends = [process.communicate(timeout=300) for process in both]
        assert [process.returncode for process in both] == [7, 7], ends
        assert _spent(job) <= LIMIT
