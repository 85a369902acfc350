"""Every kind of damage to a ledger is found, named and placed; a whole ledger is called whole."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from zephyrctl.ledger.check import verify
from zephyrctl.ledger.entries import Batch, Ended, Finished, Intent, Request, Run, StoredReply
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import Tokens

RUN = Run("1" * 16, "gen-sft", "sft-data")


def request(n: int) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": f"question {n}"}]}
    return Request.of(provider="p", origin="o", endpoint="e", model="p:m", body=body, draw=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with two replies, a call in flight when it was closed, a doubt and an open batch."""
    place = tmp_path / "ledger.sqlite"
    with Ledger.open(place) as ledger:
        begun = ledger.begin_many([Intent(request(n), 100) for n in range(4)], RUN).result()
        reply = StoredReply(b"answer", "text", "stop", Tokens(3, 2), "m-1")
        numbers = [number for number in begun if isinstance(number, int)]
        ledger.finish_many([Finished(numbers[n], request(n).key, reply, 7) for n in (0, 1)]).result()
        ledger.fail_many([Ended(numbers[2], "timeout", "timeout")]).result()
        batch = Batch("b1", "p", "o", "p:m", RUN.id, "building")
        ledger.begin_batch(batch, [Intent(request(4), 50)], RUN).result()
    return place


def spoil(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        assert connection.execute(statement, values).rowcount > 0
    connection.close()


def test_a_whole_ledger_is_whole(path: Path, tmp_path: Path) -> None:
    with Ledger.open(path) as ledger:
        verdict = verify(ledger)
    assert verdict.whole
    assert (verdict.requests, verdict.replies, verdict.attempts) == (5, 2, 5)
    assert (verdict.in_flight, verdict.open_batches) == (1, 1)
    assert verdict.document()["ok"] is True
    with Ledger.open(tmp_path / "none.sqlite") as none:
        assert verify(none).whole


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE request SET draw = 1 WHERE key = ?", "keys that are not"),
        ("UPDATE request SET body_z = x'00' WHERE key = ?", "keys that are not"),
        ("UPDATE response SET sha256 = 'x' WHERE key = ?", "replies that do not fit"),
        ("UPDATE response SET body_z = x'789c' WHERE key = ?", "replies that do not fit"),
        ("DELETE FROM response WHERE key = ?", "a reply that is not there"),
        ("DELETE FROM request WHERE key = ?", "replies without their request"),
        ("UPDATE attempt SET run_id = 'x' WHERE key = ?", "attempts without their run"),
        ("UPDATE attempt SET owner = 1 WHERE key = ?", "attempts without their owner"),
        ("UPDATE attempt SET cost_uusd = 8 WHERE key = ?", "sums of money"),
        ("INSERT INTO lease VALUES (?, 1, 1, NULL)", "holds on requests that nobody asks"),
        ("INSERT INTO used VALUES ('x', substr(?, 2))", "a run uses"),
    ],
)
def test_damage_is_named_with_its_place(path: Path, statement: str, what: str) -> None:
    spoil(path, statement, request(0).key)
    with Ledger.open(path) as ledger:
        verdict = verify(ledger)
    found = {finding.what: finding for finding in verdict.findings}
    named = [finding for name, finding in found.items() if what in name]
    assert len(named) == 1, sorted(found)
    assert named[0].count == (2 if what == "sums of money" else 1)
    assert request(0).key[1:] in named[0].where[0] or what == "sums of money"


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE spend SET doubt_uusd = 0 WHERE scope = 'all'", "sums of money"),
        ("DELETE FROM spend WHERE scope <> 'all'", "sums of money"),
        ("DELETE FROM lease WHERE batch = 'b1'", "another may ask again"),
        ("DELETE FROM batch", "a batch that is not there"),
        ("UPDATE batch SET state = 'done'", "a batch that is over"),
    ],
)
def test_sums_and_batches_are_checked(path: Path, statement: str, what: str) -> None:
    spoil(path, statement)
    with Ledger.open(path) as ledger:
        assert [what in finding.what for finding in verify(ledger).findings] == [True]


@pytest.mark.parametrize("reach", [(0, 60), (3500, 4096)])
def test_damaged_pages_are_found(path: Path, reach: tuple[int, int]) -> None:
    with Ledger.open(path) as ledger:
        ledger.read(lambda c: c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'attempt'"
        page = ledger.read(lambda c: c.execute(query).fetchone())[0]
    data = bytearray(path.read_bytes())
    first, last = ((page - 1) * 4096 + place for place in reach)
    data[first:last] = b"\xa5" * (last - first)
    path.write_bytes(bytes(data))
    with Ledger.open(path) as ledger:
        findings = verify(ledger).findings
    assert [finding.what for finding in findings] == ["pages of the file are damaged"]
    assert findings[0].where
