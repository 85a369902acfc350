"""Batches whose provider is late, vague or strange: no row ends the others, nothing is handed in twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bulk_office import PRICE, RUN, Bench, Office, OfficeProvider, fine, jobs_of

from zephyrctl.ledger.entries import Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import Tokens
from zephyrctl.providers import batchfile
from zephyrctl.providers.base import BatchResult, Reading, Retryable
from zephyrctl.providers.calling import bulk, bulk_open
from zephyrctl.providers.calling.job import stored


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


class Brittle(OfficeProvider):
    """Some replies break its reader."""

    def read(self, raw: bytes) -> Reading:
        if b"poison" in raw:
            raise RuntimeError("beyond me")
        return super().read(raw)


def test_a_row_that_breaks_the_reader_is_finished_online_and_counts_as_charged(ledger):
    def turn(key: str, place: int) -> BatchResult:
        return BatchResult(key, b'{"text": "poison"}') if place == 1 else fine(key, place)

    bench = Bench(ledger)
    jobs = jobs_of(Brittle(Office(turn=turn)), 4)
    (left,) = bench.run(jobs)
    assert not left.batched
    assert len(bench.results) == 3
    assert ledger.stats(RUN.id).states == {"ok": 3, "in_doubt": 1}
    assert ledger.spend(RUN.id).doubt == PRICE.worst(100, 10, batch=True)
    assert [batch.state for batch in ledger.batches(open_only=False)] == ["done"]


def test_what_is_read_is_kept_in_a_form_that_the_ledger_takes():
    reading = Reading("a", "text", "stop\ud800", "gpt\ud800", Tokens(1 << 70, 1), fingerprint="f\udfff")
    kept = stored(b"x", reading)
    assert (kept.finish_reason, kept.served_model, kept.fingerprint) == ("stop�", "gpt�", "f�")
    assert kept.tokens is None


def test_a_batch_that_is_listed_late_is_not_handed_in_twice(ledger):
    class Late(OfficeProvider):
        async def batch_find(self, batch, keys, others):
            found = await super().batch_find(batch, keys, others)
            return found if self.office.finds > 1 else None

    office = Office()
    lost = [Retryable("transport", "cut off", maybe_billed=True)]

    def after(operation: str) -> None:
        if operation == "submit" and lost:
            raise lost.pop()

    office.after = after
    bench = Bench(ledger)
    assert bench.run(jobs_of(Late(office), 3)) == []
    assert office.sizes == [3]
    assert office.finds == 2
    assert bulk_open.LOOK_SECONDS in bench.naps


def test_a_provider_that_cannot_tell_is_asked_ever_more_rarely(ledger):
    office = Office(unsettled=30)
    lost = [Retryable("transport", "cut off", maybe_billed=True)]
    office.before = lambda operation: (
        (_ for _ in ()).throw(lost.pop()) if operation == "submit" and lost else None
    )
    bench = Bench(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 1)) == []
    waits = bench.naps[1:31]
    assert waits == sorted(waits)
    assert waits[-1] == 60.0


@pytest.mark.parametrize("number", [1, 3])
def test_what_the_queue_never_takes_goes_online_in_the_end(ledger, number):
    office = Office(states=["full"] * 100)
    bench = Bench(ledger)
    jobs = jobs_of(OfficeProvider(office), number)
    assert {job.key for job in bench.run(jobs)} == {job.key for job in jobs}
    assert office.sizes.count(1) >= 3 * number
    assert bench.naps.count(bulk.ROOM_SECONDS) >= 2
    assert ledger.spend(RUN.id).reserved == 0


def test_an_import_passes_over_strange_ids_and_lines_without_end(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(batchfile, "LONGEST_LINE", 200)
    ledger.want([job.request for job in jobs_of(OfficeProvider(Office()), 1)], Run("r")).result()
    reply = {"status_code": 200, "body": {"x": 1}}
    path = tmp_path / "replies.jsonl"
    strange = json.dumps({"custom_id": "\ud800", "response": reply})
    unknown = json.dumps({"custom_id": "k", "response": reply})
    path.write_text(f"{strange}\n{'x' * 1000}\n{unknown}\n", encoding="ascii")
    found = batchfile.import_replies(ledger, path)
    assert found.unknown == 2
    assert len(found.bad) == 1
    assert ":2: longer than" in found.bad[0]
