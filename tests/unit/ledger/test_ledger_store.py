"""The ledger keeps what it is given: keys, replies, states, damage, migrations, several processes."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.config import canonical
from zephyrctl.errors import EnvironmentFault, IntegrityError, Locked, ZephyrError
from zephyrctl.events import Recorder
from zephyrctl.ledger import connection as connection_module
from zephyrctl.ledger.connection import on_network
from zephyrctl.ledger.entries import (
    Begun,
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
from zephyrctl.money import Tokens

RUN = Run("run", "gen-sft", "sft-data")


def request(n: int = 0, draw: int = 0) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": f"question {n}"}]}
    return Request.of(provider="p", origin="o", endpoint="e", model="p:m", body=body, draw=draw)


def reply(text: str = "answer") -> StoredReply:
    return StoredReply(text.encode(), "text", "stop", Tokens(3, 2, 1, 0, 1), "m-1", "fp-1")


def begin(ledger: Ledger, *requests: Request, run: Run = RUN) -> list[Begun]:
    return ledger.begin_many([Intent(one, 10) for one in requests], run).result()


def store(ledger: Ledger, req: Request, rep: StoredReply, run: Run = RUN) -> StoredReply:
    (attempt,) = begin(ledger, req, run=run)
    assert isinstance(attempt, int)
    return ledger.finish_many([Finished(attempt, req.key, rep, 7, "req-1")]).result()[0]


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    found = connection.execute(query).fetchall()
    connection.close()
    return found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(body=st.dictionaries(st.text(), JSON, max_size=4), draw=st.integers(0, 9))
def test_key_depends_on_content_not_on_order(body: dict[str, object], draw: int) -> None:
    def key(b: dict[str, object], d: int = draw, **other: str) -> str:
        parts = {"provider": "p", "origin": "o", "endpoint": "e", **other}
        return Ledger.key(body=b, draw=d, **parts)

    assert key(body) == key(dict(reversed(list(body.items()))))
    parts = {"key_version": 1, "provider": "p", "origin": "o", "endpoint": "e", "body": body, "draw": draw}
    whole = canonical(parts).encode("utf-8", "surrogatepass")
    assert key(body) == hashlib.sha256(whole).hexdigest()
    made = Request.of(provider="p", origin="o", endpoint="e", model="m", body=body, draw=draw)
    assert made.key == key(body)
    others = [key(body, draw + 1), key(body, origin="o2"), key(body, provider="p2"), key(body, endpoint="e2")]
    assert len({key(body), key({**body, "another": 1}), *others}) == 6


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.binary(max_size=200), min_size=1, max_size=8))
def test_what_is_stored_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("l") / "ledger.sqlite"
    replies = {request(n).key: StoredReply(t, "text", "stop", None, "m") for n, t in enumerate(texts)}
    with Ledger.open(path) as ledger:
        for n, rep in enumerate(replies.values()):
            store(ledger, request(n), rep)
    with Ledger.open(path) as ledger:
        assert ledger.known([*replies, "absent"]) == replies


def test_nothing_is_made_before_the_first_write(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        assert ledger.known(["a"]) == {}
        assert ledger.recover() == Recovered()
        assert ledger.stats("run").calls == 0
        assert ledger.spend() == ledger.spend("run") == Spend()
        assert ledger.in_doubt("run") == {}
        assert ledger.batches() == []
        ledger.used(RUN, []).result()
        assert ledger.want([], RUN).result() == 0
        assert not path.parent.exists()
        store(ledger, request(), reply())
        assert ledger.known([request().key]) == {request().key: reply()}
    assert path.exists()


def test_a_commit_is_in_the_file_when_the_future_resolves(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        (attempt,) = begin(ledger, request())
        assert rows(path, "SELECT state, reserved_uusd FROM attempt") == [("inflight", 10)]
        ledger.finish_many([Finished(attempt, request().key, reply(), 7, "req-1")]).result()
        columns = "state, cost_uusd, request_id, http_status, prompt_tokens, completion_tokens, cached_tokens"
        assert rows(path, f"SELECT {columns}, cache_write_tokens, reasoning_tokens FROM attempt") == [
            ("ok", 7, "req-1", 200, 3, 2, 1, 0, 1)
        ]
        assert rows(path, "SELECT fingerprint, usage FROM response") == [("fp-1", "[3, 2, 1, 0, 1]")]
        assert rows(path, "PRAGMA journal_mode") == [("wal",)]


def test_the_first_reply_holds(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        (one,) = begin(ledger, request())
        ledger.fail_many([Ended(one, "timeout", "timeout")]).result()
        (two,) = begin(ledger, request())
        assert ledger.finish_many([Finished(two, request().key, reply("first"), 5)]).result() == [
            reply("first")
        ]
        # the reply of the first attempt comes after all
        assert ledger.finish_many([Finished(one, request().key, reply("second"), 6)]).result() == [
            reply("first")
        ]
        assert begin(ledger, request()) == [reply("first")]
        assert ledger.known([request().key]) == {request().key: reply("first")}
        assert ledger.stats("run").states == {"ok": 2}
        assert ledger.spend() == Spend(settled=11)


def test_two_replies_to_one_request_in_one_go(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        (one,) = begin(ledger, request())
        ledger.fail_many([Ended(one, "in_doubt", "transport")]).result()
        (two,) = begin(ledger, request())
        both = [Finished(n, request().key, reply(str(n)), 5) for n in (one, two)]
        assert ledger.finish_many(both).result() == [reply(str(one))] * 2
        # told again after a crash of the teller: nothing changes
        assert ledger.finish_many(both).result() == [reply(str(one))] * 2
        assert ledger.spend() == Spend(settled=10)


def test_an_attempt_that_was_never_begun_takes_no_reply(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        (one,) = begin(ledger, request(1))
        assert isinstance(one, int)
        for attempt, key in ((one + 1, request(1).key), (one, request(2).key)):
            with pytest.raises(IntegrityError, match="no attempt"):
                ledger.finish_many([Finished(attempt, key, reply())]).result()
        assert ledger.known([request(1).key, request(2).key]) == {}


def test_states_and_stats(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        attempts = begin(ledger, *(request(n) for n in range(4)))
        ledger.fail_many(
            [
                Ended(attempts[0], "error", "server_error", status=503, request_id="r"),
                Ended(attempts[1], "timeout", "timeout"),
                Ended(attempts[2], "in_doubt", "transport"),
            ]
        ).result()
        ledger.finish_many([Finished(attempts[3], request(3).key, reply(), 7)]).result()
        ledger.fail_many([Ended(attempts[3], "error", "late")]).result()
        stats = ledger.stats("run")
        assert stats.states == {"error": 1, "timeout": 1, "in_doubt": 1, "ok": 1}
        assert (stats.calls, stats.in_doubt, stats.prompt_tokens, stats.completion_tokens) == (1, 2, 3, 2)
        assert (stats.cached_tokens, stats.reasoning_tokens) == (1, 1)
        assert ledger.in_doubt("run") == {("p", "o", "p:m"): (2, 20)}
        assert ledger.stats("another").states == {}
        assert ledger.in_doubt("another") == {}
        assert ledger.spend("run") == ledger.spend() == Spend(settled=7, doubt=20)


def test_a_request_keeps_its_place_over_many_tries(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger.open(path) as ledger:
        for _ in range(3):
            (attempt,) = begin(ledger, request())
            ledger.fail_many([Ended(attempt, "error", "server_error")]).result()
    assert rows(path, "SELECT n FROM attempt ORDER BY id") == [(0,), (1,), (2,)]
    assert rows(path, "SELECT COUNT(*) FROM request") == [(1,)]


def test_runs_note_what_they_use(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger.open(path) as ledger:
        store(ledger, request(1), reply())
        store(ledger, request(2), reply())
        begin(ledger, request(3))
        begin(ledger, request(1), run=Run("later", "eval"))
        ledger.used(Run("another"), [request(n).key for n in (1, 2, 2)]).result()
        ledger.used(Run("another"), [request(1).key]).result()
    used = rows(path, "SELECT run_id, key FROM used")
    assert sorted(used) == sorted(
        (run, request(n).key)
        for run, n in [("run", 1), ("run", 2), ("later", 1), ("another", 1), ("another", 2)]
    )
    assert rows(path, "SELECT id, stage, name FROM run ORDER BY id") == [
        ("another", "", ""),
        ("later", "eval", ""),
        ("run", "gen-sft", "sft-data"),
    ]


def test_wanted_requests_are_written_without_an_attempt(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger.open(path) as ledger:
        store(ledger, request(0), reply())
        assert ledger.want([request(n) for n in range(3)], RUN).result() == 2
        assert ledger.want([request(n) for n in range(3)], RUN).result() == 0
        assert set(ledger.known(request(n).key for n in range(3))) == {request(0).key}
    assert rows(path, "SELECT COUNT(*) FROM request") == [(3,)]
    assert rows(path, "SELECT COUNT(*) FROM attempt") == [(1,)]
    assert rows(path, "SELECT COUNT(*) FROM used WHERE run_id = 'run'") == [(3,)]


def test_lookups_of_any_size(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        requests = [request(n) for n in range(700)]
        attempts = begin(ledger, *requests)
        ledger.finish_many(
            [Finished(a, r.key, reply(r.key)) for a, r in zip(attempts, requests, strict=True)]
        ).result()
        for count in (1, 2, 8, 9, 33, 128, 512, 513, 700):
            keys = [r.key for r in requests[:count]]
            assert ledger.known([*keys, *keys, "absent"]) == {key: reply(key) for key in keys}
            assert set(ledger.known([*keys, "absent"])) == set(keys)


def test_what_a_piece_of_work_wrote_before_its_error_is_undone(tmp_path: Path) -> None:
    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO run VALUES ('half', '', '', 0)")
        raise IntegrityError("no")

    with Ledger.open(tmp_path / "l") as ledger:
        with pytest.raises(IntegrityError):
            ledger.write(work).result()
        assert ledger.read(lambda c: c.execute("SELECT COUNT(*) FROM run").fetchone()) == (0,)


def test_a_newer_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger.open(path) as ledger:
        store(ledger, request(), reply())
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    raw.close()
    with pytest.raises(EnvironmentFault, match="made by a newer zephyrctl"):
        Ledger.open(path)


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to be one" * 30, b"x"])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "l"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="damaged"):
        Ledger.open(path)
    assert path.read_bytes() == content


def test_a_database_that_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "l"
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE photos (a)")
    raw.close()
    with pytest.raises(IntegrityError, match="not a zephyrctl ledger"):
        Ledger.open(path)


def test_flipped_bits_never_become_another_reply(tmp_path: Path) -> None:
    path = tmp_path / "l"
    good = {request(n).key: reply(f"answer number {n}") for n in range(20)}
    with Ledger.open(path) as ledger:
        for n in range(20):
            store(ledger, request(n), good[request(n).key])
    whole = path.read_bytes()
    caught = 0
    for n in range(120):
        position = (n * 7919 * 13) % len(whole)
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (n % 8)
        path.write_bytes(bytes(damaged))
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        try:
            with Ledger.open(path) as ledger:
                for key, found in ledger.known(good).items():
                    assert found.body == good[key].body
        except ZephyrError:
            caught += 1
    assert caught > 0


def test_full_disk_is_said_and_what_was_stored_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l"
    real = connection_module.connect

    def small(where: Path, *, wal: bool) -> sqlite3.Connection:
        opened = real(where, wal=wal)
        opened.execute("PRAGMA max_page_count = 40")
        return opened

    monkeypatch.setattr("zephyrctl.ledger.ledger.connect", small)
    stored = []
    with Ledger.open(path) as ledger:

        def fill() -> None:
            for n in range(500):
                store(ledger, request(n), StoredReply(os.urandom(2000), "text", "stop", None, "m"))
                stored.append(request(n).key)

        with pytest.raises(EnvironmentFault, match="no space left"):
            fill()
        assert stored
        assert set(ledger.known(stored)) == set(stored)


def test_a_limit_of_the_system_is_said_and_what_was_stored_stays(tmp_path: Path) -> None:
    # the file may not grow past 300 kB: SQLite's writes fail as they do on a broken disk
    script = """
import os, resource, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_ledger_store import request, store
from zephyrctl.errors import EnvironmentFault
from zephyrctl.ledger.entries import StoredReply
from zephyrctl.ledger.ledger import Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
ledger = Ledger.open(Path(sys.argv[1]))
try:
    for n in range(500):
        store(ledger, request(n), StoredReply(os.urandom(2000), "text", "stop", None, "m"))
        os.write(1, f"{request(n).key}\\n".encode())
except EnvironmentFault as error:
    os.write(2, error.message.encode())
    os._exit(3)
"""
    path = tmp_path / "l"
    command = [sys.executable, "-c", script, str(path), str(Path(__file__).parent)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 3
    assert "no space left" in done.stderr
    told = done.stdout.split()
    assert told
    with Ledger.open(path) as ledger:
        assert set(ledger.known(told)) == set(told)
        assert ledger.recover().calls <= 1


def test_a_ledger_held_by_another_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l"
    with Ledger.open(path) as ledger:
        store(ledger, request(1), reply())
    monkeypatch.setattr(connection_module, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with Ledger.open(path) as ledger:
        with pytest.raises(Locked, match="held by another process"):
            begin(ledger, request(2))
        assert ledger.known([request(1).key]) == {request(1).key: reply()}
        holder.execute("ROLLBACK")
        holder.close()
        store(ledger, request(2), reply())


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with Ledger.open(tmp_path / "file" / "ledger") as ledger, pytest.raises(EnvironmentFault):
        begin(ledger, request())


@pytest.mark.parametrize("round_", range(4))
def test_several_processes_write_at_once(tmp_path: Path, round_: int) -> None:
    # each process reads on one connection and writes on another; all of them begin and end at about the same time
    script = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_ledger_store import reply, request, store
from zephyrctl.ledger.entries import Run
from zephyrctl.ledger.ledger import Ledger
with Ledger.open(Path(sys.argv[1])) as ledger:
    for n in range(25):
        store(ledger, request(100 * int(sys.argv[3]) + n), reply(str(n)), Run(sys.argv[3]))
"""
    path = tmp_path / "l"
    here = str(Path(__file__).parent)
    running = [subprocess.Popen([sys.executable, "-c", script, str(path), here, str(n)]) for n in range(4)]
    assert [process.wait(60) for process in running] == [0, 0, 0, 0]
    with Ledger.open(path) as ledger:
        keys = [request(100 * p + n).key for p in range(4) for n in range(25)]
        assert len(ledger.known(keys)) == 100
        assert ledger.stats("2").calls == 25
        assert ledger.spend("2") == Spend(settled=175)
        assert ledger.spend() == Spend(settled=700)


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
31 22 0:44 / /mnt/share rw shared:1 - nfs4 server:/x rw
33 31 8:2 / /mnt/share/local rw - xfs /dev/sdb rw
34 22 0:45 / /mnt/with\\040space rw - cifs //server/x rw
broken line
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/home/x", None),
        ("/mnt/share/a", "nfs4"),
        ("/mnt/share/local/b", None),
        ("/mnt/with space/c", "cifs"),
    ],
)
def test_network_file_systems_are_recognised(tmp_path: Path, place: str, kind: str | None) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS, encoding="utf-8")
    assert on_network(Path(place), mounts) == kind
    assert on_network(Path(place), tmp_path / "absent") is None


def test_on_a_network_the_rollback_mode_is_used_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zephyrctl.ledger.ledger.on_network", lambda path: "nfs4")
    told = Recorder()
    with Ledger.open(tmp_path / "l", emit=told) as ledger:
        store(ledger, request(), reply())
        assert ledger.known([request().key])
    raw = sqlite3.connect(tmp_path / "l")
    assert raw.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    raw.close()
    assert len(told.texts()) == 1
    assert "nfs4" in told.texts()[0]


def test_a_second_connection_of_this_process_keeps_the_locks_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "l"
    script = (
        "import sqlite3, sys\n"
        "other = sqlite3.connect(sys.argv[1], timeout=0)\n"
        "print(other.execute('PRAGMA journal_mode = DELETE').fetchone()[0])\n"
    )
    with Ledger.open(path) as ledger:
        store(ledger, request(1), reply("1"))
        assert ledger.known([request(1).key])
        # leaving WAL needs every other connection gone: it must not look so while this ledger is open
        tried = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
        )
        assert "locked" in tried.stderr
        store(ledger, request(2), reply("2"))
    with Ledger.open(path) as ledger:
        assert len(ledger.known([request(1).key, request(2).key])) == 2
