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


def insert(n: int | str | None) -> object:
    return lambda connection: connection.execute("INSERT INTO t VALUES (?)", (n,)).rowcount


def held(writer: Writer) -> tuple[threading.Event, object]:
    """Keep the writer busy until the event is set, so that what is queued meanwhile forms one group."""
    gate = threading.Event()
    return gate, writer.submit(lambda connection: gate.wait(10))


def test_many_writes_share_few_commits(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "db", lambda: opened(tmp_path / "db"))
    gate, _ = held(writer)
    commits = []
    futures = [writer.submit(insert(n)) for n in range(200)]
    writer.submit(lambda connection: connection.set_trace_callback(commits.append))
    futures += [writer.submit(insert(n)) for n in range(200, 400)]
    gate.set()
    assert [future.result(10) for future in futures] == [1] * 400
    writer.close()
    assert 0 < commits.count("COMMIT") <= 200 // GROUP + 2
    assert rows(tmp_path / "db") == list(range(400))


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


FAULTS = {
    UsageError: lambda connection: _refuse(),
    UnicodeEncodeError: insert("\ud800"),
    OverflowError: insert(1 << 70),
    ValueError: lambda connection: int("x"),
}


def _refuse() -> None:
    raise UsageError("no")


@pytest.mark.parametrize("kind", FAULTS)
def test_an_error_that_is_not_the_databases_concerns_one_item(tmp_path: Path, kind: type[Exception]) -> None:
    writer = Writer(tmp_path / "db", lambda: opened(tmp_path / "db"))
    gate, _ = held(writer)
    first, bad, last = writer.submit(insert(1)), writer.submit(FAULTS[kind]), writer.submit(insert(2))
    gate.set()
    assert first.result(10) == last.result(10) == 1
    with pytest.raises(kind):
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


def test_nothing_is_lost_between_closing_and_the_next_write(tmp_path: Path) -> None:
    """Writes while another thread closes: each is written by the thread that ends, or by the next one."""
    writer = Writer(tmp_path / "db", lambda: opened(tmp_path / "db"))
    written = []

    def write(start: int) -> None:
        written.extend(writer.submit(insert(n)) for n in range(start, start + 100))

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        writer.close()
    for thread in threads:
        thread.join()
    assert [future.result(10) for future in written] == [1] * 300
    writer.close()
    assert rows(tmp_path / "db") == list(range(300))


def test_nothing_is_queued_after_the_end(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "db", lambda: opened(tmp_path / "db"))
    writer.submit(insert(0)).result(10)
    lock, closing = writer._starting, threading.Thread(target=writer.close)

    class ClosedAtOnce:
        """The writer is closed as soon as its lock is free."""

        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *about: object) -> None:
            lock.release()
            if threading.current_thread() is not closing:
                closing.start()
                closing.join(10)

    writer._starting = ClosedAtOnce()  # type: ignore[assignment]
    assert writer.submit(insert(1)).result(10) == 1
    assert rows(tmp_path / "db") == [0, 1]


def test_a_connection_that_cannot_be_made_is_reported_to_each(tmp_path: Path) -> None:
    def broken() -> sqlite3.Connection:
        raise EnvironmentFault("no")

    writer = Writer(tmp_path / "db", broken)
    futures = [writer.submit(insert(n)) for n in range(3)]
    for future in futures:
        with pytest.raises(EnvironmentFault):
            future.result(10)
    writer.close()
