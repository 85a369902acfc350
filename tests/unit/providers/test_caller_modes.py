"""Online, batch, auto and offline: who is asked how."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from provider_fakes import FakeProvider, ask, asking, texts

from zephyrctl.errors import BudgetReached, StageRejected, TryAgain
from zephyrctl.events import Recorder
from zephyrctl.ledger.entries import Batch, Finished, Intent, Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import Price
from zephyrctl.providers.base import BatchLimits, BatchState, Rejected
from zephyrctl.providers.calling import bulk
from zephyrctl.providers.calling.job import Job


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


class Post(FakeProvider):
    """A provider that could take batches; what is done with them is replaced in these tests."""

    price = Price(1000.0, 1000.0)
    batch_limits = BatchLimits(1000, 1 << 20)

    async def batch_submit(self, batch: str, lines: Sequence[Any]) -> str:
        raise NotImplementedError

    async def batch_find(self, batch: str, keys: Sequence[str], others: Any) -> str | None:
        raise NotImplementedError

    async def batch_poll(self, remote_id: str) -> BatchState:
        raise NotImplementedError

    def batch_results(self, remote_id: str) -> Any:
        raise NotImplementedError

    async def batch_cancel(self, remote_id: str) -> None:
        raise NotImplementedError


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was handed in; every tenth row comes back unanswered."""
    sizes: list[int] = []

    async def run_bulk(
        ledger: Ledger, run: Run, jobs: Sequence[Job], *, settings: Any, emit: Any, settle: Callable[..., None],
        stopping: asyncio.Event, sleep: Any,
    ) -> list[Job]:  # fmt: skip
        sizes.append(len(jobs))
        left = [job for place, job in enumerate(jobs) if place % 10 == 9]
        for job in jobs:
            if job not in left:
                job.batched = True
                (attempt,) = await asyncio.wrap_future(
                    ledger.begin_many([Intent(job.request, job.reserve)], run)
                )
                assert isinstance(attempt, int)
                reply = job.read(job.provider.raw(job.request.body))  # type: ignore[union-attr]
                done = [Finished(attempt, job.key, reply, job.cost(reply.tokens))]
                await asyncio.wrap_future(ledger.finish_many(done))
                settle(job.key, job.answer(reply, replayed=False))
        return left

    monkeypatch.setattr(bulk, "run_bulk", run_bulk)
    return sizes


def questions(count: int) -> list[Any]:
    return [ask(str(n)) for n in range(count)]


def test_a_batch_and_its_leftovers(ledger: Ledger, handed: list[int]) -> None:
    provider = Post()
    with asking(ledger, mode="batch") as caller:
        results = caller.ask(provider, questions(20), task="t")
    assert texts(results) == [f"fake says {n}" for n in range(20)]
    assert (handed, len(provider.sent)) == ([20], 2)
    # Half price for what came by batch: 15 thousand uusd a call.
    assert caller.summary()[0]["cost_usd"] == (18 * 7_500 + 2 * 15_000) / 1e6
    assert caller.spent().settled == 18 * 7_500 + 2 * 15_000


def test_auto_probes_first(ledger: Ledger, handed: list[int]) -> None:
    provider = Post()
    with asking(ledger, mode="auto") as caller:
        assert len(caller.ask(provider, questions(200), task="t")) == 200
    assert handed == [190]
    assert sorted(provider.sent[:10], key=int) == [str(n) for n in range(10)]
    assert len(provider.sent) == 10 + 19


def test_auto_stays_online_for_few_rows(ledger: Ledger, handed: list[int]) -> None:
    provider = Post()
    with asking(ledger, mode="auto") as caller:
        caller.ask(provider, questions(90), task="t")
    assert (handed, len(provider.sent)) == ([], 90)


def test_auto_hands_in_nothing_that_fails(ledger: Ledger, handed: list[int]) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        raise Rejected("rejected", "HTTP 400: no such field")

    with pytest.raises(StageRejected, match="no such field"), asking(ledger, mode="auto") as caller:
        caller.ask(Post(script=script), questions(300), task="t")
    assert handed == []


def test_a_model_without_batches_is_asked_online(ledger: Ledger, handed: list[int]) -> None:
    told = Recorder()
    plain, post = FakeProvider("plain"), Post("post")
    with asking(ledger, mode="batch", emit=told) as caller:
        pairs = [(provider, ask(str(n))) for n in range(5) for provider in (plain, post)]
        assert len(texts(caller.ask_all(pairs, task="t"))) == 10
        caller.ask(plain, [ask("x")], task="t")
    assert (handed, len(plain.sent)) == ([5], 6)
    assert [t for t in told.texts() if "no batch API" in t] == [
        "fake:plain: no batch API, so it is asked online"
    ]


def test_an_offline_endpoint_gets_its_requests_written_down(ledger: Ledger) -> None:
    provider = FakeProvider()
    provider.offline = True  # type: ignore[attr-defined]
    with pytest.raises(TryAgain, match="requests wait to be answered elsewhere"), asking(ledger) as caller:
        caller.ask(provider, questions(3), task="t")
    assert provider.sent == []
    assert ledger.read(lambda db: db.execute("SELECT COUNT(*) FROM request").fetchone()) == (3,)


def test_a_call_of_an_open_batch_is_not_paid_twice(ledger: Ledger) -> None:
    provider = Post()
    with asking(ledger) as caller:
        job = caller._board.job(provider, ask("0"))
    batch = Batch("b-1", "fake", "here", "fake:fake", "run", "building")
    ledger.begin_batch(batch, [Intent(job.request, 1)], Run("run")).result()
    with pytest.raises(TryAgain, match="batch b-1") as caught, asking(ledger) as caller:
        caller.ask(provider, questions(1), task="t")
    assert "--mode batch" in str(caught.value.resume)
    assert provider.sent == []


def test_an_error_of_the_batch_is_raised(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_bulk(*args: Any, **more: Any) -> list[Job]:
        raise BudgetReached("no room")

    monkeypatch.setattr(bulk, "run_bulk", run_bulk)
    with pytest.raises(BudgetReached), asking(ledger, mode="batch") as caller:
        caller.ask(Post(), questions(3), task="t")
