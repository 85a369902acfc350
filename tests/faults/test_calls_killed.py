"""Never pay twice: a stage killed at random moments ends, after restarts, as if nothing had happened."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from fault_job import Job
from zephyrctl.testing.teacher import LoopbackTeacher

LATENCY = 0.05


def _killed_and_finished(folder: Path, seed: int, expected: dict[str, bytes], calls: int) -> None:
    """Kill a job up to three times at moments drawn from `seed`, finish it, compare its books with the teacher's."""
    draw = random.Random(seed)
    with LoopbackTeacher(latency=LATENCY) as teacher:
        job = Job(folder, teacher).prepare()
        doubtful = 0
        for _ in range(draw.randint(1, 3)):
            if not job.kill_after(draw.uniform(0.0, 0.6)):
                break
            doubtful += job.in_flight()
        done = job.run()
        assert done.returncode == 0, done.stderr
        assert job.data() == expected
        assert calls <= teacher.billed_calls <= calls + doubtful
        recorded = job.query("SELECT COUNT(*), SUM(reserved_uusd) FROM attempt WHERE state = 'in_doubt'")[0]
        assert recorded[0] == doubtful
        assert job.in_flight() == 0
        if doubtful:
            spent = job.query("SELECT doubt_uusd FROM spend WHERE scope = 'all'")[0][0]
            assert spent == recorded[1] > 0
        told = re.findall(r"(\d+) calls? (?:was|were) in flight", done.stderr)
        assert sum(map(int, told)) <= doubtful


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    """The data of an uninterrupted run and the number of calls it paid for."""
    with LoopbackTeacher() as teacher:
        job = Job(tmp_path_factory.mktemp("untouched"), teacher).prepare()
        done = job.run()
        assert done.returncode == 0, done.stderr
        return job.data(), teacher.billed_calls


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_random_moments(seed: int, tmp_path: Path, untouched: tuple[dict[str, bytes], int]) -> None:
    _killed_and_finished(tmp_path, seed, *untouched)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 50))
def test_killed_at_many_more_moments(
    seed: int, tmp_path: Path, untouched: tuple[dict[str, bytes], int]
) -> None:
    _killed_and_finished(tmp_path, seed, *untouched)


def test_two_processes_on_one_job_pay_once(tmp_path: Path, untouched: tuple[dict[str, bytes], int]) -> None:
    expected, calls = untouched
    with LoopbackTeacher(latency=LATENCY) as teacher:
        job = Job(tmp_path, teacher).prepare()
        first, second = job.start("--yes"), job.start("--yes")
        ends = [process.communicate(timeout=300) for process in (first, second)]
        codes = sorted(process.returncode for process in (first, second))
        assert codes in ([0, 0], [0, 75]), ends
        assert teacher.billed_calls == calls
        assert job.data() == expected


def test_two_steps_with_equal_questions_pay_once(
    tmp_path: Path, untouched: tuple[dict[str, bytes], int]
) -> None:
    expected, calls = untouched
    with LoopbackTeacher(latency=LATENCY) as teacher:
        job = Job(tmp_path, teacher).prepare()
        first = job.start("--yes")
        second = job.start("--yes", "--out", "other", "--set", "test_fraction=0.2")
        ends = [process.communicate(timeout=300) for process in (first, second)]
        assert [process.returncode for process in (first, second)] == [0, 0], ends
        assert teacher.billed_calls == calls
        assert job.data() == expected
