"""Calls leave one ledger and enter another: all of them, once, and nothing that was changed on the way."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.errors import BadRow, EnvironmentFault, IntegrityError, RefNotFound, UsageError
from zephyrctl.ledger import schema, transfer
from zephyrctl.ledger.calls import of_line
from zephyrctl.ledger.check import verify
from zephyrctl.ledger.entries import Batch, Ended, Finished, Intent, Request, Run, Spend, StoredReply
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.ledger.report import Scope
from zephyrctl.money import Tokens

RUN = Run("1" * 16, "gen-sft", "sft-data")
OTHER = Run("2" * 16, "gen-prefs", "feedback")


def request(n: object) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": f"question {n} é \ud800"}], "x": 1e-05}
    return Request.of(provider="p", origin="o", endpoint="e", model="p:m", body=body, draw=0)


def reply(text: str | bytes = "answer") -> StoredReply:
    body = text if isinstance(text, bytes) else text.encode()
    return StoredReply(body, "text", "stop", Tokens(3, 2, reasoning=1), "m-1", "fp")


def begin(ledger: Ledger, names: Sequence[object], run: Run = RUN, reserve: int | None = 100) -> list[int]:
    begun = ledger.begin_many([Intent(request(n), reserve) for n in names], run).result()
    return [attempt for attempt in begun if isinstance(attempt, int)]


def answer(ledger: Ledger, names: Sequence[object], text: str | bytes = "answer", run: Run = RUN) -> None:
    attempts = begin(ledger, names, run)
    finished = [
        Finished(attempt, request(n).key, reply(text), cost=7)
        for attempt, n in zip(attempts, names, strict=True)
    ]
    ledger.finish_many(finished).result()


def content(ledger: Ledger) -> list[dict[str, Any]]:
    out = io.BytesIO()
    transfer.export(ledger, out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.fixture
def full(tmp_path: Path) -> Ledger:
    """Replies of two runs, one of them replayed by the other; an error, a doubt, one that waits."""
    with Ledger.open(tmp_path / "full.sqlite") as ledger:
        answer(ledger, [1, 2])
        answer(ledger, [3], b"\xff\x00 not utf-8", run=OTHER)
        ledger.used(OTHER, [request(2).key]).result()
        doubt, error = begin(ledger, [4, 5])
        ledger.fail_many(
            [Ended(doubt, "timeout", "timeout"), Ended(error, "error", "server_error", 500)]
        ).result()
        ledger.want([request(6)], RUN).result()
    return ledger


def test_everything_survives_a_round_trip(full: Ledger, tmp_path: Path) -> None:
    given = transfer.export_file(full, tmp_path / "calls.jsonl.gz")
    assert (given.requests, given.replies) == (6, 3)
    with Ledger.open(tmp_path / "new.sqlite") as new:
        taken = transfer.load(new, tmp_path / "calls.jsonl.gz")
        assert (taken.seen, taken.requests, taken.replies, taken.attempts) == (6, 6, 3, 5)
        assert content(new) == content(full)
        assert new.known([request(3).key])[request(3).key].body == b"\xff\x00 not utf-8"
        assert new.known([request(1).key]) == full.known([request(1).key])
        assert (new.spend(), new.spend(RUN.id)) == (full.spend(), full.spend(RUN.id))
        assert (new.spend().settled, new.spend().doubt) == (21, 100)
        again = transfer.load(new, tmp_path / "calls.jsonl.gz")
        assert (again.seen, again.requests, again.replies, again.attempts, again.updated) == (6, 0, 0, 0, 0)
        assert content(new) == content(full)
        assert verify(new).whole


def test_equal_ledgers_give_equal_files(full: Ledger, tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl.gz"
    transfer.export_file(full, one)
    transfer.export_file(full, two)
    assert one.read_bytes() == two.read_bytes()
    plain = tmp_path / "plain.jsonl"
    transfer.export_file(full, plain)
    assert gzip.decompress(one.read_bytes()) == plain.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if "jsonl" in p.name) == [
        "one.jsonl.gz", "plain.jsonl", "two.jsonl.gz",
    ]  # fmt: skip


def test_only_the_calls_of_a_run(full: Ledger) -> None:
    out = io.BytesIO()
    given = transfer.export(full, out, Scope((OTHER.id,)))
    keys = {json.loads(line)["key"] for line in out.getvalue().splitlines()}
    # the reply it made, and the one it took from another run
    assert keys == {request(2).key, request(3).key}
    assert (given.requests, given.replies) == (2, 2)


def test_an_unfinished_export_leaves_the_old_file(
    full: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "calls.jsonl"
    target.write_text("old\n")

    def fails(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer.os, "fsync", fails)
    with pytest.raises(EnvironmentFault, match="no space"):
        transfer.export_file(full, target)
    assert target.read_text() == "old\n"
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]


def _lines(full: Ledger) -> list[bytes]:
    out = io.BytesIO()
    transfer.export(full, out)
    return out.getvalue().splitlines()


def _edited(line: bytes, **changes: object) -> bytes:
    return json.dumps({**json.loads(line), **changes}).encode()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda line: line[:-20], "not JSON"),
        (lambda line: b"[1]", "not a JSON object"),
        (lambda line: b"[" * 100_000, "nested too deeply"),
        (lambda line: _edited(line, draw=7), "not the key of its request"),
        (lambda line: _edited(line, origin="elsewhere"), "not the key of its request"),
        (lambda line: _edited(line, draw="0"), "draw"),
        (lambda line: _edited(line, surprise=1), "surprise"),
        (lambda line: _edited(line, reply={**json.loads(line)["reply"], "text": "x"}), "sha256"),
        (
            lambda line: _edited(line, reply={**json.loads(line)["reply"], "base64": "eA=="}),
            "as text or as base64",
        ),
        (lambda line: _edited(line, runs=[]), "run that is not listed"),
        (lambda line: _edited(line, format=2), "format"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_taken(
    full: Ledger, tmp_path: Path, spoil: Any, why: str
) -> None:
    lines = _lines(full)
    place = next(i for i, line in enumerate(lines) if json.loads(line)["key"] == request(1).key)
    lines[place] = spoil(lines[place])
    path = tmp_path / "calls.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    with Ledger.open(tmp_path / "new.sqlite") as new, pytest.raises(BadRow, match=why) as raised:
        transfer.load(new, path)
    assert raised.value.where == f"{path}:{place + 1}"
    assert raised.value.exit_code == 5
    assert not new.path.exists()


def test_a_cut_archive_is_named(full: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl.gz"
    transfer.export_file(full, path)
    path.write_bytes(path.read_bytes()[:-30])
    with Ledger.open(tmp_path / "new.sqlite") as new, pytest.raises(BadRow, match="cut or damaged"):
        transfer.load(new, path)
    with Ledger.open(tmp_path / "new.sqlite") as new, pytest.raises(RefNotFound):
        transfer.load(new, tmp_path / "nothing")
    with Ledger.open(tmp_path / "new.sqlite") as new, pytest.raises(UsageError, match="no plain file"):
        transfer.load(new, tmp_path)


def test_merging_is_by_key_and_twice_is_once(full: Ledger, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ours.sqlite") as ours:
        answer(ours, [1, 7])
        before = ours.spend()
        taken = transfer.merge(ours, full.path)
        assert (taken.seen, taken.requests, taken.replies, taken.attempts) == (6, 5, 2, 5)
        assert taken.disagreeing == 0
        assert set(ours.known([request(n).key for n in range(1, 8)])) == {
            request(n).key for n in (1, 2, 3, 7)
        }
        # both paid for the first request, so both payments count
        assert ours.spend().settled == before.settled + full.spend().settled == 35
        once = content(ours)
        again = transfer.merge(ours, full.path)
        assert (again.seen, again.requests, again.replies, again.attempts, again.updated) == (6, 0, 0, 0, 0)
        assert content(ours) == once
        assert verify(ours).whole


def test_of_two_replies_ours_stays(full: Ledger, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ours.sqlite") as ours:
        answer(ours, [1], "another answer")
        taken = transfer.merge(ours, full.path)
        assert (taken.disagreeing, taken.examples) == (1, [request(1).key])
        assert ours.known([request(1).key])[request(1).key].body == b"another answer"
        assert verify(ours).whole


def test_what_is_in_flight_elsewhere_is_in_doubt_here_until_more_is_known(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "theirs.sqlite") as theirs, Ledger.open(tmp_path / "ours.sqlite") as ours:
        (attempt,) = begin(theirs, [1])
        transfer.merge(ours, theirs.path)
        assert (ours.spend().doubt, ours.spend().reserved, theirs.spend().reserved) == (100, 0, 100)
        theirs.finish_many([Finished(attempt, request(1).key, reply(), cost=7)]).result()
        taken = transfer.merge(ours, theirs.path)
        assert (taken.updated, taken.attempts, taken.replies) == (1, 0, 1)
        assert ours.spend() == theirs.spend()
        assert content(ours) == content(theirs)
        assert verify(ours).whole


def test_open_batches_come_along(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "theirs.sqlite") as theirs, Ledger.open(tmp_path / "ours.sqlite") as ours:
        batch = Batch("b1", "p", "o", "p:m", RUN.id, "building")
        theirs.begin_batch(batch, [Intent(request(n), 50) for n in (1, 2)], RUN).result()
        theirs.set_batch("b1", state="open", remote_id="remote").result()
        transfer.merge(ours, theirs.path)
        (known,) = ours.batches()
        assert (known.id, known.remote_id, set(known.keys)) == (
            "b1",
            "remote",
            {request(1).key, request(2).key},
        )
        assert ours.spend().reserved == 100
        assert verify(ours).whole
        attempts = theirs.batched_attempts("b1")
        theirs.finish_many(
            [Finished(attempts[request(n).key], request(n).key, reply(), 5) for n in (1, 2)]
        ).result()
        theirs.set_batch("b1", state="done").result()
        transfer.merge(ours, theirs.path)
        assert ours.batches() == []
        assert (ours.spend().reserved, ours.spend().settled) == (0, 10)
        assert verify(ours).whole


def test_a_ledger_is_not_merged_into_itself_and_must_exist(full: Ledger, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the ledger itself"):
        transfer.merge(full, full.path)
    with pytest.raises(RefNotFound):
        transfer.merge(full, tmp_path / "nothing.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database " * 50)
    with pytest.raises(IntegrityError, match="damaged"):
        transfer.merge(full, tmp_path / "text.sqlite")


def old_ledger(path: Path) -> None:
    """A ledger as the first schema had it, with one reply."""
    with Ledger.open(path) as ledger:
        answer(ledger, [1])
        row = ledger.read(lambda c: c.execute("SELECT * FROM request").fetchone())
        answered = ledger.read(lambda c: c.execute("SELECT * FROM response").fetchone())
    path.unlink()
    for extra in path.parent.glob(path.name + "-*"):
        extra.unlink()
    with sqlite3.connect(path) as connection:
        for statement in schema.MIGRATIONS[0]:
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES ('schema_version', '1')")
        connection.execute("INSERT INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        connection.execute("INSERT INTO owner VALUES (5, 'h', 'b', 1, 's', 0.5)")
        connection.execute(
            "INSERT INTO attempt (id, key, n, run_id, owner, state, started) VALUES (1, ?, 0, ?, 5, 'ok', 1.5)",
            (row[0], RUN.id),
        )
        values = [*answered[:5], "[3, 2]", *answered[6:]]
        connection.execute("INSERT INTO response VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    connection.close()


def test_an_older_ledger_is_merged_from_a_copy(tmp_path: Path) -> None:
    old = tmp_path / "old" / "ledger.sqlite"
    old.parent.mkdir()
    old_ledger(old)
    before = old.read_bytes()
    with Ledger.open(tmp_path / "ours.sqlite") as ours:
        taken = transfer.merge(ours, old)
        assert (taken.requests, taken.replies, taken.attempts) == (1, 1, 1)
        assert ours.known([request(1).key])[request(1).key].body == b"answer"
        assert verify(ours).whole
    assert old.read_bytes() == before
    assert [p.name for p in old.parent.iterdir()] == ["ledger.sqlite"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".merge")]


def test_a_damaged_ledger_is_refused(full: Ledger, tmp_path: Path) -> None:
    with sqlite3.connect(full.path) as connection:
        connection.execute("UPDATE response SET sha256 = 'x' WHERE key = ?", (request(1).key,))
    connection.close()
    with (
        Ledger.open(tmp_path / "ours.sqlite") as ours,
        pytest.raises(IntegrityError, match="does not fit its sha256"),
    ):
        transfer.merge(ours, full.path)
    with pytest.raises(IntegrityError, match="does not fit"):
        transfer.export(full, io.BytesIO())


def test_a_new_ledger_starts_with_the_replies_of_another_and_none_of_its_money(
    full: Ledger, tmp_path: Path
) -> None:
    path = tmp_path / "part.sqlite"
    assert transfer.start_from(path, full.path) == 3
    with Ledger.open(path) as part:
        keys = [request(n).key for n in (1, 2, 3)]
        assert part.known(keys) == full.known(keys)
        assert part.spend() == Spend()
        assert part.begin_many([Intent(request(1), 100)], RUN).result() == [full.known(keys)[keys[0]]]
        answer(part, [8])
        assert verify(part).whole
        before = full.spend().settled
        taken = transfer.merge(full, path)
        assert (taken.requests, taken.replies, taken.attempts) == (1, 1, 1)
        assert full.spend().settled == before + 7
    assert transfer.start_from(path, full.path) is None
    assert transfer.start_from(tmp_path / "other.sqlite", tmp_path / "nothing.sqlite") is None
    full.close()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.text(), min_size=1, max_size=4, unique=True),
    raw=st.binary(max_size=40),
    chunk=st.integers(1, 3),
)
def test_any_text_and_any_reply_survive(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], raw: bytes, chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    with Ledger.open(folder / "a.sqlite") as one, Ledger.open(folder / "b.sqlite") as two:
        answer(one, texts, raw)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transfer, "CHUNK", chunk)
            transfer.merge(two, one.path)
        assert content(two) == content(one)
        assert all(of_line(json.dumps(line)) for line in content(one))
