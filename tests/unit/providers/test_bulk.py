"""Batches through the caller's eyes: half price, every request billed once, whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from bulk_office import PRICE, RUN, USED, Bench, Office, OfficeProvider, Settings, fine, job_of, jobs_of

from zephyrctl.errors import AuthError, BudgetReached, ProviderDown, TryAgain, UsageError
from zephyrctl.events import Calls
from zephyrctl.ledger.entries import Batch, Budget, Intent
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Answer, BatchLimits, BatchResult, Failure, Rejected, Retryable
from zephyrctl.providers.calling import bulk, bulk_batch, bulk_open

EACH = PRICE.cost(USED, batch=True)


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def again(ledger: Ledger, **settings: Any) -> Bench:
    """The same command in a new process."""
    ledger.close()
    return Bench(Ledger.open(ledger.path), Settings(**settings))


def texts(bench: Bench) -> dict[str, str]:
    return {key: result.text for key, result in bench.results.items() if isinstance(result, Answer)}


def states(ledger: Ledger) -> dict[str, int]:
    return ledger.stats(RUN.id).states


def test_all_is_answered_at_the_price_of_a_batch(ledger):
    office = Office(polls=3)
    jobs = jobs_of(OfficeProvider(office), 7)
    bench = Bench(ledger)
    assert bench.run(jobs) == []
    assert texts(bench) == {job.key: f"answer to {job.key[:6]}" for job in jobs}
    assert office.sizes == [7]
    assert ledger.spend(RUN.id).settled == 7 * EACH
    assert ledger.spend(RUN.id).reserved == 0
    assert [batch.state for batch in ledger.batches(open_only=False)] == ["done"]
    assert bench.naps == pytest.approx([5.0, 7.5, 11.25])
    assert [e for e in bench.told.events if isinstance(e, Calls)][-1].done == 7


def test_looks_get_rarer_up_to_a_minute(ledger):
    bench = Bench(ledger)
    bench.run(jobs_of(OfficeProvider(Office(polls=12)), 1))
    assert bench.naps == sorted(bench.naps)
    assert bench.naps[-3:] == [60.0] * 3


def test_many_files_are_out_at_once_one_model_to_each(ledger):
    office = Office(polls=2)
    limits = BatchLimits(4, 1_000_000)
    jobs = [
        *jobs_of(OfficeProvider(office, name="one", limits=limits), 7),
        *jobs_of(OfficeProvider(office, name="two", limits=limits), 2),
    ]
    bench = Bench(ledger)
    assert bench.run(jobs) == []
    assert office.sizes == [3, 3, 1, 2]
    assert sum(office.looks.values()) == 4 * 3
    assert len(bench.naps) == 2 * 4
    assert len(bench.results) == 9


def test_what_is_known_is_not_handed_in(ledger):
    office = Office()
    Bench(ledger).run(jobs_of(OfficeProvider(office), 3))
    bench = again(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 5)) == []
    assert office.sizes == [3, 2]
    assert set(office.billed.values()) == {1}


def test_a_reply_that_another_process_stored_meanwhile_is_taken(ledger):
    office = Office()
    jobs = jobs_of(OfficeProvider(office), 2)
    with Ledger.open(ledger.path) as other:
        Bench(other).run(jobs[:1])
        bench = Bench(ledger)
        assert asyncio.run(bench._run(jobs)) == []
    assert office.sizes == [1, 1]
    assert bench.results[jobs[0].key].replayed


ENDS: dict[str, tuple[Callable[[str, int], BatchResult | None], str]] = {
    "expired": (lambda key, place: BatchResult(key, None, "expired", "not in time"), "error"),
    "server error": (lambda key, place: BatchResult(key, None, "server_error", "HTTP 500"), "error"),
    "unreadable": (lambda key, place: BatchResult(key, b"{}"), "in_doubt"),
    "no text": (lambda key, place: BatchResult(key, b'{"x": 1}'), "in_doubt"),
    "missing": (lambda key, place: None, "in_doubt"),
}


@pytest.mark.parametrize("end", ENDS)
def test_rows_without_a_reply_are_finished_online_and_the_others_kept(ledger, end):
    turn, state = ENDS[end]
    office = Office(turn=lambda key, place: turn(key, place) if place % 2 else fine(key, place))
    jobs = jobs_of(OfficeProvider(office), 6)
    bench = Bench(ledger)
    left = bench.run(jobs)
    assert {job.key for job in left} == {job.key for job in jobs} - set(bench.results)
    assert len(left) == 3
    assert states(ledger) == {"ok": 3, state: 3}
    reserved = PRICE.worst(100, 10, batch=True)
    assert ledger.spend(RUN.id).doubt == (3 * reserved if state == "in_doubt" else 0)
    assert ledger.spend(RUN.id).reserved == 0
    begun = ledger.begin_many([Intent(job.request, 1) for job in left], RUN).result()
    assert all(isinstance(there, int) for there in begun), "they can be asked online now"


def test_missing_rows_are_looked_for_once_more(ledger):
    held: list[str] = []

    def late(key: str, place: int) -> BatchResult | None:
        if place == 0 and key not in held:
            held.append(key)
            return None
        return fine(key, place)

    bench = Bench(ledger)
    assert bench.run(jobs_of(OfficeProvider(Office(turn=late)), 3)) == []
    assert len(bench.results) == 3
    assert bench.naps[-1] == bulk_batch.AGAIN_SECONDS


def test_a_row_that_the_provider_rejects_fails_for_good(ledger):
    def turn(key: str, place: int) -> BatchResult:
        return fine(key, place) if place else BatchResult(key, None, "rejected", "HTTP 400: no", final=True)

    bench = Bench(ledger)
    assert bench.run(jobs_of(OfficeProvider(Office(turn=turn)), 3)) == []
    failures = [result for result in bench.results.values() if isinstance(result, Failure)]
    assert [(f.reason, f.detail) for f in failures] == [("rejected", "HTTP 400: no")]
    assert states(ledger) == {"ok": 2, "error": 1}


def test_results_are_joined_by_key_alone(ledger):
    jobs = jobs_of(OfficeProvider(Office()), 4)
    twice = BatchResult(jobs[0].key, json.dumps({"text": "a second answer"}).encode())
    strange = BatchResult("f" * 64, json.dumps({"text": "nobody asked"}).encode())
    office = Office(extra=[twice, strange])
    jobs = jobs_of(OfficeProvider(office), 4)
    bench = Bench(ledger)
    assert bench.run(jobs) == []
    assert texts(bench) == {job.key: f"answer to {job.key[:6]}" for job in jobs}
    assert any("1 results that were not asked for and 1 twice" in text for text in bench.told.texts())


@pytest.mark.parametrize(("state", "attempt"), [("refused", "error"), ("lost", "in_doubt")])
def test_a_batch_that_gives_nothing_goes_online_whole(ledger, state, attempt):
    office = Office(states=[state])
    jobs = jobs_of(OfficeProvider(office), 3)
    bench = Bench(ledger)
    assert bench.run(jobs) == jobs
    assert states(ledger) == {attempt: 3}
    assert any("asked one by one" in text for text in bench.told.texts())
    assert ledger.batches() == []


def test_without_room_in_the_queue_files_wait_for_others_or_get_smaller(ledger, monkeypatch):
    monkeypatch.setattr(bulk, "_SMALL", 2)
    office = Office(states=["ended", "full", "ended", "full", "full"])
    jobs = jobs_of(OfficeProvider(office, limits=BatchLimits(9, 1_000_000)), 16)
    bench = Bench(ledger)
    assert bench.run(jobs) == []
    assert len(bench.results) == 16
    assert +office.billed == {job.key: 1 for job in jobs}
    assert sorted(office.sizes, reverse=True)[:3] == [8, 8, 8]
    assert ledger.spend(RUN.id).settled == 16 * EACH


def test_a_small_file_waits_for_room_instead_of_paying_more(ledger):
    office = Office(states=["full", "full"])
    bench = Bench(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 2)) == []
    assert office.sizes == [2, 2, 2]
    assert bench.naps.count(bulk.ROOM_SECONDS) == 2


def test_a_request_too_large_for_any_file_is_left(ledger):
    provider = OfficeProvider(Office(), limits=BatchLimits(10, 2000))
    jobs = [job_of(provider, "small"), job_of(provider, "x" * 3000)]
    bench = Bench(ledger)
    assert bench.run(jobs) == jobs[1:]
    assert set(bench.results) == {jobs[0].key}


# --- money ---


def test_a_budget_makes_batches_smaller_and_is_never_crossed(ledger):
    office = Office()
    worst = PRICE.worst(100, 10, batch=True)
    assert worst == EACH
    bench = Bench(ledger, Settings(Budget(step=5 * worst)))
    with pytest.raises(BudgetReached, match="5 of 8 calls of this wave are done"):
        bench.run(jobs_of(OfficeProvider(office), 8))
    assert office.sizes == [5]
    assert len(bench.results) == 5
    assert ledger.spend(RUN.id).settled == 5 * EACH

    bench = again(ledger, budget=Budget(step=8 * worst))
    assert bench.run(jobs_of(OfficeProvider(office), 8)) == []
    assert office.sizes == [5, 3]
    assert len(bench.results) == 8


def test_room_that_a_batch_gives_back_is_used(ledger):
    class Generous(OfficeProvider):
        def bound(self, body: Any) -> tuple[int, int]:
            return 400, 40

    office = Office()
    bench = Bench(ledger, Settings(Budget(step=9 * EACH)))
    assert bench.run(jobs_of(Generous(office), 6)) == []
    assert office.sizes == [2, 1, 1, 1, 1]
    assert ledger.spend(RUN.id).settled == 6 * EACH


def test_a_budget_of_nothing_hands_nothing_in(ledger):
    office = Office()
    with pytest.raises(BudgetReached):
        Bench(ledger, Settings(Budget(step=0))).run(jobs_of(OfficeProvider(office), 3))
    assert office.sizes == []
    assert ledger.batches(open_only=False) == []


def test_an_unknown_price_is_no_obstacle_without_a_limit(ledger):
    bench = Bench(ledger)
    assert bench.run(jobs_of(OfficeProvider(Office(), price=None), 2)) == []
    assert len(bench.results) == 2


# --- killed, stopped, and gone on with ---


def kill_at_set_batch(ledger: Ledger, state: str) -> None:
    real = ledger.set_batch

    def set_batch(batch_id: str, **change: Any) -> Future[None]:
        if change.get("state") == state:
            raise Killed
        return real(batch_id, **change)

    ledger.set_batch = set_batch  # type: ignore[method-assign]


def killed(ledger: Ledger, office: Office, number: int) -> None:
    bench = Bench(ledger, Settings(grace=0.0))
    with pytest.raises(Killed):
        bench.run(jobs_of(OfficeProvider(office), number))


MOMENTS = [("after", "submit"), ("before", "poll"), ("before", "results"), ("before", "row")]


@pytest.mark.parametrize(("when", "operation"), MOMENTS)
def test_killed_at_any_operation_every_request_is_billed_once(ledger, monkeypatch, when, operation):
    monkeypatch.setattr(bulk_batch, "_GROUP", 2)

    def die(now: str) -> None:
        # at a row only when a part of the replies is stored
        if now == operation and (now != "row" or states(ledger).get("ok")):
            raise Killed

    office = Office(**{when: die})  # type: ignore[arg-type]
    killed(ledger, office, 5)
    assert states(ledger) == ({"ok": 2, "batched": 3} if operation == "row" else {"batched": 5})
    office.before = office.after = lambda operation: None
    bench = again(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 5)) == []
    assert len(texts(bench)) == 5
    assert list(office.billed.values()) == [1] * 5
    assert bench.ledger.spend(RUN.id).settled == 5 * EACH
    assert bench.ledger.spend(RUN.id).doubt == 0
    assert bench.ledger.spend(RUN.id).reserved == 0


@pytest.mark.parametrize("state", ["open", "done"])
def test_killed_before_the_state_is_noted_the_batch_is_found_again(ledger, state):
    office = Office()
    kill_at_set_batch(ledger, state)
    killed(ledger, office, 4)
    bench = again(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 4)) == []
    assert office.sizes == [4]
    assert len(bench.results) == 4


def test_what_was_never_handed_in_ends_as_cancelled_and_is_handed_in_then(ledger):
    def die(operation: str) -> None:
        raise Killed

    office = Office(before=die)
    killed(ledger, office, 3)
    office.before = lambda operation: None
    bench = again(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 3)) == []
    assert states(bench.ledger) == {"cancelled": 3, "ok": 3}
    assert [batch.state for batch in bench.ledger.batches(open_only=False)] == ["failed", "done"]
    assert bench.naps[0] == bulk_open.LOOK_SECONDS, "a provider may be slow to list what it has taken"
    assert office.finds == 2


def test_while_the_provider_cannot_tell_nothing_is_handed_in(ledger):
    office = Office(unsettled=30)
    kill_at_set_batch(ledger, "open")
    killed(ledger, office, 3)
    bench = again(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 3)) == []
    assert office.sizes == [3]
    assert office.finds == 31


def test_a_batch_that_another_process_is_handing_in_is_waited_for(ledger, monkeypatch):
    office = Office()
    jobs = jobs_of(OfficeProvider(office), 3)
    batch = Batch(
        "20261122T190000Z-abc", "openai", "https://office.example/v1", "openai:m", RUN.id, "building"
    )
    ledger.begin_batch(batch, [Intent(job.request, 1) for job in jobs], RUN).result()
    looks = iter([True, True, True])

    def busy(*_: object) -> bool:
        if next(looks, False):
            return True
        office.batches["remote-9"] = (batch.id, tuple(job.key for job in jobs))
        return False

    monkeypatch.setattr(bulk_open, "_being_handed_in", busy)
    bench = Bench(ledger)
    assert bench.run(jobs) == []
    assert office.sizes == [], "it was found under the name that the other process got"
    assert len(bench.results) == 3


def test_only_a_living_process_counts_as_handing_in(ledger, monkeypatch):
    jobs = jobs_of(OfficeProvider(Office()), 1)
    batch = Batch("20261122T190000Z-abc", "openai", "here", "openai:m", RUN.id, "building")
    ledger.begin_batch(batch, [Intent(jobs[0].request, 1)], RUN).result()
    watch = bulk_open.Watch()
    assert not bulk_open._being_handed_in(ledger, batch.id, watch)
    monkeypatch.setattr(bulk_open, "HANDING_IN", {batch.id})
    assert bulk_open._being_handed_in(ledger, batch.id, watch)
    ledger.write(lambda c: c.execute("UPDATE owner SET pid = 1, process_started = 'x'")).result()
    assert not bulk_open._being_handed_in(ledger, batch.id, watch), "that process is another one now"
    ledger.write(lambda c: c.execute("UPDATE owner SET host = 'elsewhere'")).result()
    assert bulk_open._being_handed_in(ledger, batch.id, watch), "nobody can tell from here"


def test_a_stop_leaves_batches_open_and_the_same_command_picks_them_up(ledger):
    office = Office(polls=10)
    bench = Bench(ledger, stop_at_nap=3)
    assert bench.run(jobs_of(OfficeProvider(office), 4)) == []
    assert bench.results == {}
    assert any("1 batch with 4 requests stay open" in text for text in bench.told.texts())
    assert [batch.state for batch in ledger.batches()] == ["open"]
    assert ledger.spend(RUN.id).reserved == 4 * EACH, "it may still be charged"

    bench = again(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 4)) == []
    assert office.sizes == [4]
    assert len(bench.results) == 4


def test_an_open_batch_is_collected_whole_though_only_a_part_of_it_is_asked_for(ledger):
    office = Office(polls=10)
    jobs = jobs_of(OfficeProvider(office), 6)
    Bench(ledger, stop_at_nap=1).run(jobs)
    bench = again(ledger)
    assert bench.run(jobs[:2]) == []
    assert set(bench.results) == {job.key for job in jobs[:2]}
    assert len(bench.ledger.known([job.key for job in jobs])) == 6
    assert bench.ledger.batches() == []


def test_two_processes_wait_for_one_batch(ledger):
    office = Office(polls=4)
    jobs, same = jobs_of(OfficeProvider(office), 5), jobs_of(OfficeProvider(office), 5)
    with Ledger.open(ledger.path) as second:
        one, two = Bench(ledger), Bench(second)

        async def both() -> None:
            await asyncio.gather(one._run(jobs), two._run(same))

        asyncio.run(both())
    assert list(office.billed.values()) == [1] * 5
    assert texts(one) == texts(two)
    assert len(texts(one)) == 5
    assert ledger.spend(RUN.id).settled == 5 * EACH


def test_what_a_living_process_asks_online_is_left_for_online(ledger):
    office = Office()
    jobs = jobs_of(OfficeProvider(office), 3)
    with Ledger.open(ledger.path) as other:
        other.begin_many([Intent(jobs[0].request, 1)], RUN).result()
        bench = Bench(ledger)
        assert bench.run(jobs) == jobs[:1]
    assert office.sizes == [2]


# --- faults of the provider ---


class Faults:
    """Raises the given errors at the first calls of an operation."""

    def __init__(self, **faults: list[Exception]) -> None:
        self.faults = {name.rstrip("_"): list(errors) for name, errors in faults.items()}

    def __call__(self, operation: str) -> None:
        if self.faults.get(operation):
            raise self.faults[operation].pop(0)


def busy() -> Retryable:
    return Retryable("rate_limit", "HTTP 429", retry_after=33.0)


def outage() -> Retryable:
    return Retryable("server_error", "HTTP 503")


@pytest.mark.parametrize("operation", ["submit", "find", "poll", "results", "row"])
def test_passing_faults_of_any_call_are_outlived(ledger, operation):
    faults = {operation: [outage(), outage()]} | ({"submit": [outage()]} if operation == "find" else {})
    office = Office(before=Faults(**faults))
    bench = Bench(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 3)) == []
    assert office.sizes == [3]
    assert len(bench.results) == 3


def test_a_lost_reply_to_handing_in_is_looked_for_before_anything_is_handed_in_again(ledger):
    office = Office(after=Faults(submit=[Retryable("transport", "cut", maybe_billed=True)]))
    bench = Bench(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 3)) == []
    assert office.sizes == [3]
    assert len(bench.results) == 3


def test_a_refused_key_after_a_lost_reply_leaves_the_batch_to_be_found(ledger):
    """It may be there: ended as not sent, it would be paid for twice."""
    office = Office(
        before=Faults(find=[AuthError("the key was refused")]),
        after=Faults(submit=[Retryable("transport", "cut", maybe_billed=True)]),
    )
    with pytest.raises(AuthError):
        Bench(ledger).run(jobs_of(OfficeProvider(office), 3))
    assert states(ledger) == {"batched": 3}
    bench = again(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 3)) == []
    assert office.sizes == [3]


def test_a_rate_limit_is_waited_out(ledger):
    bench = Bench(ledger)
    assert bench.run(jobs_of(OfficeProvider(Office(before=Faults(submit=[busy()]))), 1)) == []
    assert bench.naps[0] == 33.0


def test_results_cut_off_are_read_again_and_stored_once(ledger, monkeypatch):
    monkeypatch.setattr(bulk_batch, "_GROUP", 2)
    seen: list[int] = []

    def cut(key: str, place: int) -> BatchResult:
        seen.append(place)
        if len(seen) == 4:
            raise Retryable("transport", "cut", maybe_billed=True)
        return fine(key, place)

    bench = Bench(ledger)
    assert bench.run(jobs_of(OfficeProvider(Office(turn=cut)), 5)) == []
    assert len(bench.results) == 5
    assert states(ledger) == {"ok": 5}


def test_a_provider_that_stays_down_ends_the_work_for_now(ledger):
    office = Office(before=lambda operation: (_ for _ in ()).throw(outage()) if operation == "poll" else None)
    with pytest.raises(ProviderDown, match="failed in a row"):
        Bench(ledger).run(jobs_of(OfficeProvider(office), 2))
    assert [batch.state for batch in ledger.batches()] == ["open"]
    office.before = lambda operation: None
    bench = again(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 2)) == []
    assert office.sizes == [2]


@pytest.mark.parametrize("error", [AuthError("the key was refused"), UsageError("no such model")])
def test_a_refusal_that_no_wait_mends_stops_at_once_and_leaves_nothing_reserved(ledger, error):
    with pytest.raises(type(error)):
        Bench(ledger).run(jobs_of(OfficeProvider(Office(before=Faults(submit=[error]))), 2))
    assert states(ledger) == {"cancelled": 2}
    assert ledger.spend(RUN.id).reserved == 0
    assert ledger.batches() == []


def test_a_file_that_is_rejected_goes_online(ledger):
    office = Office(before=Faults(submit=[Rejected("rejected", "HTTP 400: a bad line", status=400)]))
    jobs = jobs_of(OfficeProvider(office), 2)
    bench = Bench(ledger)
    assert bench.run(jobs) == jobs
    assert states(ledger) == {"error": 2}


def test_a_file_that_is_too_large_for_the_provider_is_halved(ledger):
    office = Office(before=Faults(submit=[Rejected("rejected", "HTTP 413", status=413)]))
    bench = Bench(ledger)
    assert bench.run(jobs_of(OfficeProvider(office), 5)) == []
    assert office.sizes == [3, 2]
    assert len(bench.results) == 5


# --- written down for elsewhere ---


def test_requests_for_a_machine_out_of_reach_are_written_down(ledger):
    provider = OfficeProvider(Office(), name="org/llama")
    error = bulk.write_down(ledger, RUN, jobs_of(provider, 3))
    assert isinstance(error, TryAgain)
    assert error.exit_code == 75
    assert "3 for org/llama" in error.message
    for part in (
        "zephyrctl ledger batch export -o requests.jsonl",
        "vllm run-batch -i requests.jsonl -o replies.jsonl --model org/llama",
        "zephyrctl ledger batch import replies.jsonl",
        "the same command again",
    ):
        assert part in (error.hint or "")
    rows = ledger.read(lambda c: c.execute("SELECT COUNT(*) FROM request").fetchone()[0])
    assert rows == 3
    assert states(ledger) == {}


def test_two_models_out_of_reach_get_two_files(ledger):
    jobs = [*jobs_of(OfficeProvider(Office(), name="a"), 1), *jobs_of(OfficeProvider(Office(), name="b"), 2)]
    hint = bulk.write_down(ledger, RUN, jobs).hint or ""
    assert "requests-1.jsonl --model a" in hint
    assert "requests-2.jsonl --model b" in hint
