"""A ledger where it can only be read, owners in other containers, leases of batches that are over, faults of disks."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zephyrctl.errors import EnvironmentFault
from zephyrctl.ledger.check import verify
from zephyrctl.ledger.connection import fault
from zephyrctl.ledger.entries import (
    Batch,
    Ended,
    Finished,
    Intent,
    Recovered,
    Request,
    Run,
    Spend,
    StoredReply,
)
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.ledger.owner import PATIENCE_SECONDS, Watch, is_dead, this_process

RUN = Run("run", "gen-sft")
REPLY = StoredReply(b"answer", "text", "stop", None, "m-1")
NOBODY = 65534


def request(n: int) -> Request:
    return Request.of(provider="p", origin="o", endpoint="e", model="p:m", body={"n": n}, draw=0)


def begin(ledger: Ledger, *numbers: int) -> list[int]:
    begun = ledger.begin_many([Intent(request(n), 10) for n in numbers], RUN).result()
    assert all(isinstance(one, int) for one in begun)
    return begun  # type: ignore[return-value]


@pytest.fixture
def archive() -> Iterator[Path]:
    """A folder that every user may enter; its ledger has one reply."""
    folder = Path(tempfile.mkdtemp())
    with Ledger.open(folder / "l") as ledger:
        (one,) = begin(ledger, 1)
        ledger.finish_many([Finished(one, request(1).key, REPLY, 3)]).result()
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


LOOK = """
import os, sys
from pathlib import Path
from zephyrctl.errors import ZephyrError
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.ledger.transfer import merge
if os.geteuid() == 0:
    os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[3]))
try:
    with Ledger.open(Path(sys.argv[1])) as ledger:
        print(ledger.spend().settled)
    with Ledger.open(Path(sys.argv[2])) as ours:
        print(merge(ours, Path(sys.argv[1])).replies)
except ZephyrError as error:
    print(type(error).__name__, error.message, error.hint)
"""


def look(archive: Path, ours: Path) -> str:
    for file in archive.iterdir():
        file.chmod(0o444)
    archive.chmod(0o555)
    command = [sys.executable, "-c", LOOK, str(archive / "l"), str(ours / "l"), str(NOBODY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def ours() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_a_ledger_that_can_only_be_read_is_read_and_merged(archive: Path, ours: Path) -> None:
    assert look(archive, ours).split() == ["3", "1"]
    assert [file.name for file in archive.iterdir()] == ["l"]


def test_an_older_ledger_that_can_only_be_read_says_so(archive: Path, ours: Path) -> None:
    with sqlite3.connect(archive / "l") as connection:
        connection.execute("UPDATE meta SET value = '1' WHERE name = 'schema_version'")
    connection.close()
    told = look(archive, ours)
    assert told.startswith("EnvironmentFault")
    assert "older schema" in told
    assert "copy it" in told


def test_reading_leaves_nothing_beside_the_ledger(archive: Path) -> None:
    with Ledger.open(archive / "l") as ledger:
        assert ledger.spend() == Spend(settled=3)
    assert [file.name for file in archive.iterdir()] == ["l"]


def test_pids_of_another_namespace_are_not_compared() -> None:
    me = this_process()
    boot = me.boot_id.partition(" ")[0]
    there = dataclasses.replace(me, boot_id=f"{boot} pid:[1]", pid=2**22 + 5)
    assert not is_dead(there)
    now = [0.0]
    watch = Watch(lambda: now[0])
    assert not watch.gone(1, there, beat=4)
    now[0] = PATIENCE_SECONDS + 1
    assert watch.gone(1, there, beat=4)
    assert is_dead(dataclasses.replace(me, pid=2**22 + 5))


def test_a_batch_that_is_over_holds_nothing(tmp_path: Path) -> None:
    intents = [Intent(request(n), 10) for n in range(3)]
    with Ledger.open(tmp_path / "l") as ledger:
        ledger.begin_batch(Batch("b", "p", "o", "p:m", "run", "building"), intents, RUN).result()
        ledger.set_batch("b", state="done").result()
        begin(ledger, 0)
        assert ledger.spend() == Spend(reserved=30, doubt=10)
        assert ledger.recover() == Recovered(2, 20)
        assert [finding.what for finding in verify(ledger).findings] == []


def test_doubt_counts_until_its_request_is_answered(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        one, two = begin(ledger, 1, 2)
        ledger.fail_many([Ended(one, "timeout", "timeout"), Ended(two, "in_doubt", "stopped")]).result()
        assert ledger.unanswered_doubt("run") == (2, 20)
        (again,) = begin(ledger, 1)
        ledger.finish_many([Finished(again, request(1).key, REPLY, 3)]).result()
        assert ledger.unanswered_doubt("run") == (1, 10)
        assert ledger.unanswered_doubt("another") == (0, 0)


def test_batches_come_without_their_keys_where_nobody_needs_these(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        ledger.begin_batch(
            Batch("b", "p", "o", "p:m", "run", "building"), [Intent(request(1), 10)], RUN
        ).result()
        assert [(b.id, b.keys) for b in ledger.batches(keys=False)] == [("b", ())]


def test_tries_are_counted_for_any_number_of_keys(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        (one,) = begin(ledger, 1)
        ledger.fail_many([Ended(one, "error", "rate_limit")]).result()
        many = [str(n) for n in range(300_000)]
        assert ledger.tried([*many, request(1).key]) == {request(1).key: 1}


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (sqlite3.SQLITE_FULL, "no space left"),
        (sqlite3.SQLITE_IOERR_WRITE, "no space left"),
        (sqlite3.SQLITE_IOERR_READ, "the disk under the ledger"),
        (sqlite3.SQLITE_IOERR_FSYNC, "the disk under the ledger"),
    ],
)
def test_a_failing_disk_is_not_a_full_one(code: int, told: str) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    found = fault(error, Path("l"))
    assert isinstance(found, EnvironmentFault)
    assert told in found.message
