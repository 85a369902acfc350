"""Group commit: what waits together is written together; one bad piece of work harms no neighbour."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from zephyrctl.errors import EnvironmentFault, UsageError
from zephyrctl.ledger.writer import GROUP, Writer


def opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER NOT NULL)")
    return connection


def rows(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    found = [row[0] for row in connection.execute("SELECT n FROM t ORDER BY n")]
    connection.close()
    return found


def insert(n: int | None) -> object:
    return lambda connection: connection.execute("INSERT INTO t VALUES (?)", (n,)).rowcount


def held(writer: Writer) -> tuple[threading.Event, object]:
    """Keep the writer busy until the event is set, so that what is queued meanwhile forms one group."""
    gate = threading.Event()
    return gate, writer.submit(lambda connection: gate.wait(10))


def test_many_writes_share_few_commits(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "db", lambda: opened(tmp_path / "db"))
    gate, _ = held(writer)
    futures = [writer.submit(insert(n)) for n in range(200)]
    gate.set()
    assert [future.result(10) for future in futures] == [1] * 200
    assert writer.commits <= 2 + 200 // GROUP + 1
    writer.close()
    assert rows(tmp_path / "db") == list(range(200))


def test_a_failing_commit_fails_its_whole_group_and_the_next_group_works(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "db", lambda: opened(tmp_path / "db"))
    gate, _ = held(writer)
    group = [writer.submit(insert(n)) for n in (1, None, 3)]
    gate.set()
    for future in group:
        with pytest.raises(EnvironmentFault):
            future.result(10)
    assert writer.submit(insert(4)).result(10) == 1
    writer.close()
    assert rows(tmp_path / "db") == [4]


def test_an_error_of_ours_concerns_one_item(tmp_path: Path) -> None:
    def refuse(connection: sqlite3.Connection) -> None:
        raise UsageError("no")

    writer = Writer(tmp_path / "db", lambda: opened(tmp_path / "db"))
    gate, _ = held(writer)
    first, bad, last = writer.submit(insert(1)), writer.submit(refuse), writer.submit(insert(2))
    gate.set()
    assert first.result(10) == last.result(10) == 1
    with pytest.raises(UsageError):
        bad.result(10)
    writer.close()
    assert rows(tmp_path / "db") == [1, 2]


def test_what_an_item_wrote_before_its_error_is_undone(tmp_path: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (7)")
        raise UsageError("no")

    writer = Writer(tmp_path / "db", lambda: opened(tmp_path / "db"))
    gate, _ = held(writer)
    first, bad, last = writer.submit(insert(1)), writer.submit(half), writer.submit(insert(2))
    gate.set()
    assert first.result(10) == last.result(10) == 1
    with pytest.raises(UsageError):
        bad.result(10)
    writer.close()
    assert rows(tmp_path / "db") == [1, 2]


def test_a_transaction_that_sqlite_gave_up_is_told_and_the_next_group_works(tmp_path: Path) -> None:
    def lost(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (7)")
        connection.execute("ROLLBACK")
        raise sqlite3.OperationalError("disk I/O error")

    writer = Writer(tmp_path / "db", lambda: opened(tmp_path / "db"))
    with pytest.raises(EnvironmentFault, match="disk I/O error"):
        writer.submit(lost).result(10)
    assert writer.submit(insert(4)).result(10) == 1
    writer.close()
    assert rows(tmp_path / "db") == [4]


def test_the_pulse_is_written_while_nothing_else_is(tmp_path: Path) -> None:
    beaten = threading.Event()

    def pulse(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (100)")
        beaten.set()

    writer = Writer(tmp_path / "db", lambda: opened(tmp_path / "db"), pulse=pulse, every=0.01)
    assert writer.submit(insert(1)).result(10) == 1
    assert beaten.wait(10)
    assert writer.submit(insert(2)).result(10) == 1
    writer.close()
    assert {1, 2, 100} == set(rows(tmp_path / "db"))


def test_a_cancelled_future_is_still_written_and_the_writer_lives(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "db", lambda: opened(tmp_path / "db"))
    gate, _ = held(writer)
    given_up = writer.submit(insert(1))
    assert given_up.cancel()
    gate.set()
    assert writer.submit(insert(2)).result(10) == 1
    writer.close()
    assert rows(tmp_path / "db") == [1, 2]


def test_close_writes_what_is_queued_and_the_writer_can_start_again(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "db", lambda: opened(tmp_path / "db"))
    for n in range(10):
        writer.submit(insert(n))
    writer.close()
    assert rows(tmp_path / "db") == list(range(10))
    assert writer.submit(insert(10)).result(10) == 1
    writer.close()


def test_a_connection_that_cannot_be_made_is_reported_to_each(tmp_path: Path) -> None:
    def broken() -> sqlite3.Connection:
        raise EnvironmentFault("no")

    writer = Writer(tmp_path / "db", broken)
    futures = [writer.submit(insert(n)) for n in range(3)]
    for future in futures:
        with pytest.raises(EnvironmentFault):
            future.result(10)
    writer.close()
