"""A ledger of an older schema is brought up to date: nothing is lost, a copy stays, several processes may try at once.

`ledger-v1.sql` is the dump of a ledger that the first schema's program wrote (the place of `HOST` is the name of
the machine).
"""

from __future__ import annotations

import errno
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from zephyrctl.errors import EnvironmentFault, IntegrityError
from zephyrctl.ledger import schema
from zephyrctl.ledger.entries import Finished, Intent, Recovered, Request, Run, Spend, StoredReply
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import Tokens

DUMP = Path(__file__).with_name("ledger-v1.sql")


def request(n: int) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": f"question {n}"}]}
    return Request.of(provider="p", origin="o", endpoint="e", model="p:m", body=body, draw=0)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "l"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(DUMP.read_text(encoding="utf-8").replace("HOST", socket.gethostname()))
    return path


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


OLD_REPLIES = {
    request(n).key: StoredReply(
        f"answer {n}".encode(), "text", "stop", Tokens(3 + n, 2) if n else None, "m-1"
    )
    for n in range(3)
}
ATTEMPTS = """SELECT id, key, n, run_id, owner, state, started, ended, http_status, request_id, error_class,
              reserved_uusd, cost_uusd, prompt_tokens, completion_tokens FROM attempt ORDER BY id"""
REQUESTS = "SELECT * FROM request ORDER BY key"
RESPONSES = "SELECT * FROM response ORDER BY key"


def test_a_ledger_of_the_first_schema_keeps_every_row(old: Path) -> None:
    before = {query: rows(old, query) for query in (ATTEMPTS, REQUESTS, RESPONSES)}
    with Ledger.open(old) as ledger:
        assert ledger.known(request(n).key for n in range(9)) == OLD_REPLIES
        assert ledger.stats("run-two").states == {"error": 1, "timeout": 1, "inflight": 1}
        assert ledger.in_doubt("run-two") == {("p", "o", "p:m"): (1, 0)}
        assert ledger.spend() == Spend()
    assert {query: rows(old, query) for query in before} == before
    assert rows(old, "SELECT value FROM meta") == [("2",)]
    assert rows(old, "SELECT id, stage, name FROM run ORDER BY id") == [
        ("run-one", "", ""),
        ("run-two", "", ""),
    ]
    assert {key for (key,) in rows(old, "SELECT key FROM used WHERE run_id = 'run-one'")} == set(OLD_REPLIES)
    backup = old.with_name("l.v1.bak")
    assert {query: rows(backup, query) for query in before} == before
    assert rows(backup, "SELECT value FROM meta") == [("1",)]
    assert sorted(p.name for p in old.parent.iterdir()) == ["l", "l.v1.bak"]


def test_a_ledger_of_the_first_schema_is_worked_with(old: Path) -> None:
    run = Run("run-two")
    with Ledger.open(old) as ledger:
        assert ledger.recover() == Recovered(1, 0)
        assert ledger.stats("run-two").states == {"error": 1, "timeout": 1, "in_doubt": 1}
        begun = ledger.begin_many([Intent(request(n), 10) for n in (2, 3, 4)], run).result()
        assert begun[0] == OLD_REPLIES[request(2).key]
        attempt = begun[1]
        assert isinstance(attempt, int)
        told = StoredReply(b"new", "text", "stop", None, "m-1")
        assert ledger.finish_many([Finished(attempt, request(3).key, told, 4)]).result() == [told]
        assert ledger.spend("run-two") == Spend(settled=4, reserved=10)
    assert rows(old, f"SELECT n FROM attempt WHERE key = '{request(3).key}' ORDER BY id") == [
        (0,),
        (1,),
        (2,),
    ]


def test_of_two_old_attempts_in_flight_for_one_request_the_newest_keeps_it(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute(
            """INSERT INTO attempt (key, n, run_id, owner, state, started)
               SELECT key, 1, run_id, owner, state, started FROM attempt WHERE state = 'inflight'"""
        )
    with Ledger.open(old) as ledger:
        assert ledger.stats("run-two").states == {"error": 1, "timeout": 1, "in_doubt": 1, "inflight": 1}
        assert ledger.recover().calls == 1


def test_several_processes_migrate_at_once(old: Path) -> None:
    script = """
import sys
from pathlib import Path
from zephyrctl.ledger.ledger import Ledger
sys.stdin.readline()
with Ledger.open(Path(sys.argv[1])) as ledger:
    ledger.recover()
    sys.stdout.write(str(ledger.stats("run-one").calls))
"""
    command = [sys.executable, "-c", script, str(old)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for process in running:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0] for process in running] == ["3"] * 4
    assert [process.returncode for process in running] == [0] * 4
    assert rows(old.with_name("l.v1.bak"), "SELECT COUNT(*) FROM response") == [(3,)]
    with Ledger.open(old) as ledger:
        assert ledger.known(OLD_REPLIES) == OLD_REPLIES


def test_a_copy_that_a_crash_left_unfinished_is_made_anew(old: Path) -> None:
    old.with_name("l.v1.bak.tmp").write_bytes(b"half a copy")
    with Ledger.open(old) as ledger:
        assert ledger.known(OLD_REPLIES) == OLD_REPLIES
    assert rows(old.with_name("l.v1.bak"), "SELECT COUNT(*) FROM response") == [(3,)]
    assert not old.with_name("l.v1.bak.tmp").exists()


def test_an_older_copy_stays_as_it_is(old: Path) -> None:
    old.with_name("l.v1.bak").write_bytes(b"kept")
    with Ledger.open(old) as ledger:
        assert ledger.known(OLD_REPLIES) == OLD_REPLIES
    assert old.with_name("l.v1.bak").read_bytes() == b"kept"


def test_a_failed_migration_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = schema.MIGRATIONS
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (first, (*second, "this is not SQL")))
        with pytest.raises(EnvironmentFault):
            Ledger.open(old)
    assert rows(old, "SELECT value FROM meta") == [("1",)]
    with Ledger.open(old) as ledger:
        assert ledger.known(OLD_REPLIES) == OLD_REPLIES


def test_a_copy_that_cannot_be_written_stops_the_migration(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(place: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "_flush", full)
        with pytest.raises(EnvironmentFault, match="No space left"):
            Ledger.open(old)
    assert rows(old, "SELECT value FROM meta") == [("1",)]
    assert not old.with_name("l.v1.bak").exists()
    with Ledger.open(old) as ledger:
        assert ledger.known(OLD_REPLIES) == OLD_REPLIES


def test_an_old_reply_that_was_damaged_is_told_and_not_lost(old: Path) -> None:
    key = request(1).key
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("UPDATE response SET body_z = ? WHERE key = ?", (b"not zlib", key))
    with Ledger.open(old) as ledger:
        with pytest.raises(IntegrityError, match="damaged reply"):
            ledger.known([key])
        assert ledger.read(
            lambda c: c.execute("SELECT COUNT(*) FROM response WHERE key = ?", (key,)).fetchone()
        ) == (1,)


def test_money_that_an_old_ledger_knows_counts(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("UPDATE attempt SET cost_uusd = 7, reserved_uusd = 20")
    with Ledger.open(old) as ledger:
        assert ledger.spend("run-one").settled == 7 * ledger.stats("run-one").calls
        assert ledger.spend("run-two") == Spend(settled=0, reserved=20, doubt=20)
        assert ledger.spend().settled == ledger.spend("run-one").settled > 0
