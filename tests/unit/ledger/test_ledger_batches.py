"""Batches in the ledger: their requests are asked by nobody else and outlive the process that handed them in."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyrctl.errors import IntegrityError
from zephyrctl.ledger.entries import (
    Batch,
    Budget,
    Ended,
    Finished,
    InBatch,
    Intent,
    Leased,
    NoRoom,
    Recovered,
    Request,
    Run,
    Spend,
    StoredReply,
)
from zephyrctl.ledger.ledger import Ledger

RUN = Run("run", "gen-prefs")
REPLY = StoredReply(b"answer", "text", "stop", None, "m-1")
BATCH = Batch("b-1", "p", "o", "p:m", "run", "building")


def request(n: int) -> Request:
    return Request.of(provider="p", origin="o", endpoint="e", model="p:m", body={"n": n}, draw=0)


def intents(*numbers: int) -> list[Intent]:
    return [Intent(request(n), 10) for n in numbers]


def test_a_batch_holds_its_requests_until_they_end(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger.open(path) as ledger:
        (online,) = ledger.begin_many(intents(9), RUN).result()
        begun = ledger.begin_batch(BATCH, intents(0, 1, 2, 9), RUN).result()
        assert [type(one) for one in begun] == [int, int, int, Leased]
        assert ledger.spend("run") == Spend(reserved=40)
        ledger.set_batch("b-1", remote_id="batch_abc").result()
        ledger.set_batch("b-1", state="open").result()
        assert isinstance(online, int)
        ledger.fail_many([Ended(online, "cancelled", "stopped")]).result()
    with Ledger.open(path) as ledger:
        # the process that handed it in is gone: a batch is not in flight, and waits
        assert ledger.recover() == Recovered()
        (batch,) = ledger.batches()
        keys = [request(n).key for n in (0, 1, 2)]
        assert (batch.id, batch.state, batch.remote_id, list(batch.keys)) == (
            "b-1",
            "open",
            "batch_abc",
            keys,
        )
        assert (batch.provider, batch.origin, batch.model, batch.run_id) == ("p", "o", "p:m", "run")
        assert ledger.begin_many(intents(1), RUN).result() == [InBatch(keys[1], "b-1")]
        assert ledger.begin_batch(
            Batch("b-2", "p", "o", "p:m", "run", "building"), intents(1), RUN
        ).result() == [InBatch(keys[1], "b-1")]
        attempts = ledger.batched_attempts("b-1")
        assert list(attempts) == keys
        ledger.finish_many([Finished(attempts[keys[0]], keys[0], REPLY, 3, "req")]).result()
        ledger.fail_many(
            [Ended(attempts[keys[1]], "error", "expired"), Ended(attempts[keys[2]], "in_doubt", "lost")]
        ).result()
        assert ledger.batched_attempts("b-1") == {}
        assert ledger.spend("run") == ledger.spend() == Spend(settled=3, doubt=10)
        ledger.set_batch("b-1", state="done").result()
        assert ledger.batches() == []
        assert [(b.id, b.state) for b in ledger.batches(open_only=False)] == [("b-1", "done")]
        again = ledger.begin_many(intents(0, 1, 2), RUN).result()
        assert again[0] == REPLY
        assert [type(one) for one in again[1:]] == [int, int]


def test_a_batch_takes_what_the_budget_has_room_for(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        begun = ledger.begin_batch(BATCH, intents(0, 1, 2), RUN, Budget(step=25)).result()
        assert begun[2] == NoRoom("step", 25, 0, 20, 10)
        assert list(ledger.batches()[0].keys) == [request(n).key for n in (0, 1)]


def test_a_batch_of_nothing_is_not_written(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        assert isinstance(ledger.begin_batch(BATCH, intents(0), RUN, Budget(step=5)).result()[0], NoRoom)
        assert ledger.batches(open_only=False) == []
        with pytest.raises(IntegrityError, match="no batch b-1"):
            ledger.set_batch("b-1", state="open").result()


def test_batches_come_oldest_first(tmp_path: Path) -> None:
    names = ["z", "a", "m"]
    with Ledger.open(tmp_path / "l") as ledger:
        for n, name in enumerate(names):
            ledger.begin_batch(Batch(name, "p", "o", "p:m", "run", "building"), intents(n), RUN).result()
        assert [batch.id for batch in ledger.batches()] == names
        assert all(batch.created > 0 for batch in ledger.batches())
