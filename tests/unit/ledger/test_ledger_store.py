"""The ledger keeps what it is given: keys, replies, states, damage, migrations, several processes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.errors import EnvironmentFault, IntegrityError, ZephyrError
from zephyrctl.events import Recorder
from zephyrctl.ledger import connection as connection_module
from zephyrctl.ledger import schema
from zephyrctl.ledger.connection import on_network
from zephyrctl.ledger.ledger import Ledger, Request, StoredReply
from zephyrctl.ledger.owner import Owner, is_dead, this_process


def request(n: int = 0, draw: int = 0) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": f"question {n}"}]}
    key = Ledger.key(provider="p", origin="o", endpoint="e", body=body, draw=draw)
    return Request(key, "p", "o", "e", "p:m", body, draw)


def reply(text: str = "answer") -> StoredReply:
    return StoredReply(text.encode(), "text", "stop", (3, 2), "m-1")


def store(ledger: Ledger, req: Request, rep: StoredReply, run: str = "run") -> StoredReply:
    attempt = ledger.begin(req, run).result()
    assert isinstance(attempt, int)
    return ledger.finish(attempt, req.key, rep).result()


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
    assert len(key(body)) == 64
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
        assert ledger.recover() == 0
        assert ledger.stats("run").calls == 0
        assert not path.parent.exists()
        store(ledger, request(), reply())
    assert path.exists()


def test_a_commit_is_in_the_file_when_the_future_resolves(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        attempt = ledger.begin(request(), "run").result()
        other = sqlite3.connect(path)
        assert other.execute("SELECT state FROM attempt").fetchall() == [("inflight",)]
        ledger.finish(attempt, request().key, reply()).result()
        assert other.execute("SELECT state FROM attempt").fetchall() == [("ok",)]
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        other.close()


def test_the_first_reply_holds(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger, Ledger.open(tmp_path / "l") as twin:
        one = ledger.begin(request(), "run").result()
        two = twin.begin(request(), "run").result()
        assert ledger.finish(one, request().key, reply("first")).result() == reply("first")
        assert twin.finish(two, request().key, reply("second")).result() == reply("first")
        assert twin.begin(request(), "run").result() == reply("first")
        assert ledger.known([request().key]) == {request().key: reply("first")}


def test_states_and_stats(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        attempts = [ledger.begin(request(n), "run").result() for n in range(4)]
        ledger.fail(attempts[:1], "error", "server_error", status=503, request_id="r").result()
        ledger.fail(attempts[1:2], "timeout", "timeout").result()
        ledger.fail(attempts[2:3], "in_doubt", "transport").result()
        ledger.finish(attempts[3], request(3).key, reply()).result()
        ledger.fail(attempts[3:], "error", "late").result()
        stats = ledger.stats("run")
        assert stats.states == {"error": 1, "timeout": 1, "in_doubt": 1, "ok": 1}
        assert (stats.calls, stats.in_doubt, stats.prompt_tokens, stats.completion_tokens) == (1, 2, 3, 2)
        assert ledger.stats("another").states == {}


def test_attempts_of_a_killed_process_become_in_doubt(tmp_path: Path) -> None:
    script = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_ledger_store import request
from zephyrctl.ledger.ledger import Ledger
ledger = Ledger.open(Path(sys.argv[1]))
for n in range(3):
    ledger.begin(request(n), "run").result()
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "l"
    command = [sys.executable, "-c", script, str(path), str(Path(__file__).parent)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    with Ledger.open(path) as ledger:
        ledger.begin(request(9), "run").result()
        assert ledger.recover() == 3
        assert ledger.recover() == 0
        assert ledger.stats("run").states == {"in_doubt": 3, "inflight": 1}
        store(ledger, request(0), reply())


def test_owners() -> None:
    me = this_process()
    assert not is_dead(me)
    assert not is_dead(Owner("another host", me.boot_id, 1, ""))
    assert is_dead(Owner(me.host, "an earlier boot", me.pid, me.started))
    assert is_dead(Owner(me.host, me.boot_id, 2**22 + 5, ""))
    if me.started:
        assert is_dead(Owner(me.host, me.boot_id, me.pid, me.started + "1"))


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


def test_migration_keeps_the_rows_and_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l"
    with Ledger.open(path) as ledger:
        store(ledger, request(), reply())
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("ALTER TABLE request ADD COLUMN extra",)))
    with Ledger.open(path) as ledger:
        assert ledger.known([request().key]) == {request().key: reply()}
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT value FROM meta").fetchone() == ("2",)
    assert "extra" in [row[1] for row in raw.execute("PRAGMA table_info(request)")]
    raw.close()
    backup = sqlite3.connect(tmp_path / "l.v1.bak")
    assert backup.execute("SELECT COUNT(*) FROM response").fetchone() == (1,)
    backup.close()


def test_a_failed_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l"
    with Ledger.open(path) as ledger:
        store(ledger, request(), reply())
    steps = ("ALTER TABLE request ADD COLUMN extra", "this is not SQL")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, steps))
        with pytest.raises(EnvironmentFault):
            Ledger.open(path)
    with Ledger.open(path) as ledger:
        assert ledger.known([request().key]) == {request().key: reply()}


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


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with Ledger.open(tmp_path / "file" / "ledger") as ledger, pytest.raises(EnvironmentFault):
        ledger.begin(request(), "run").result()


@pytest.mark.parametrize("round_", range(4))
def test_several_processes_write_at_once(tmp_path: Path, round_: int) -> None:
    # each process reads on one connection and writes on another; all of them begin and end at about the same time
    script = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_ledger_store import reply, request, store
from zephyrctl.ledger.ledger import Ledger
with Ledger.open(Path(sys.argv[1])) as ledger:
    for n in range(25):
        store(ledger, request(100 * int(sys.argv[3]) + n), reply(str(n)), sys.argv[3])
"""
    path = tmp_path / "l"
    here = str(Path(__file__).parent)
    running = [subprocess.Popen([sys.executable, "-c", script, str(path), here, str(n)]) for n in range(4)]
    assert [process.wait(60) for process in running] == [0, 0, 0, 0]
    with Ledger.open(path) as ledger:
        keys = [request(100 * p + n).key for p in range(4) for n in range(25)]
        assert len(ledger.known(keys)) == 100
        assert ledger.stats("2").calls == 25


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
        store(ledger, request(1), reply("1"), "run")
        assert ledger.known([request(1).key])
        # leaving WAL needs every other connection gone: it must not look so while this ledger is open
        tried = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
        )
        assert "locked" in tried.stderr
        store(ledger, request(2), reply("2"), "run")
    with Ledger.open(path) as ledger:
        assert len(ledger.known([request(1).key, request(2).key])) == 2
