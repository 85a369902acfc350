"""Batches of a local model do not depend on interruptions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from provider_fakes import FakeBatch, FakeProvider, ask, asking, no_sleep, texts

from zephyrctl.errors import Locked
from zephyrctl.events import Calls, Progress, Recorder
from zephyrctl.ledger.entries import Intent, Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import BatchProvider
from zephyrctl.providers.calling import batching
from zephyrctl.providers.calling.retry import Retry

QUESTIONS = ["aaaa", "b", "cc", "dddddd", "e", "ff", "ggg", "b"]


def run(path: Path, provider: FakeBatch, questions: list[str]) -> list[str]:
    with Ledger.open(path) as ledger, asking(ledger) as caller:
        return texts(caller.ask(provider, [ask(q) for q in questions], task="t"))


def test_a_batch_provider_is_told_from_an_online_one() -> None:
    assert isinstance(FakeBatch(), BatchProvider)
    assert not isinstance(FakeProvider(), BatchProvider)


def test_like_lengths_together_and_equal_requests_once(tmp_path: Path) -> None:
    provider = FakeBatch(max_batch=3)
    answers = run(tmp_path / "l", provider, QUESTIONS)
    assert provider.batches == [["b", "e", "cc"], ["ff", "ggg", "aaaa"], ["dddddd"]]
    assert answers[1] == answers[7] == "b among ['b', 'cc', 'e']"


@settings(max_examples=20, deadline=None)
@given(
    questions=st.lists(st.text("xyz", min_size=1, max_size=6), min_size=1, max_size=14),
    size=st.integers(1, 5),
    fail_at=st.integers(0, 4),
)
def test_an_interrupted_run_gives_what_an_uninterrupted_one_gives(
    tmp_path_factory: pytest.TempPathFactory, questions: list[str], size: int, fail_at: int
) -> None:
    folder = tmp_path_factory.mktemp("l")
    whole = run(folder / "whole", FakeBatch(size), questions)
    broken = FakeBatch(size, fail_at=fail_at)
    try:
        assert run(folder / "broken", broken, questions) == whole
    except RuntimeError:
        again = FakeBatch(size)
        assert run(folder / "broken", again, questions) == whole
        assert len(broken.batches) + len(again.batches) == len(FakeBatch_batches(folder, size, questions))


def FakeBatch_batches(folder: Path, size: int, questions: list[str]) -> list[list[str]]:
    provider = FakeBatch(size)
    run(folder / "count", provider, questions)
    return provider.batches


def test_a_batch_with_a_missing_member_is_computed_whole(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", FakeBatch(3), QUESTIONS)
    run(tmp_path / "l", FakeBatch(3), QUESTIONS)
    with Ledger.open(tmp_path / "l") as ledger:
        ledger.write(
            lambda db: db.execute("DELETE FROM response WHERE key IN (SELECT key FROM response LIMIT 1)")
        ).result()
    provider = FakeBatch(3)
    assert run(tmp_path / "l", provider, QUESTIONS) == whole
    assert len(provider.batches) == 1


def test_local_and_online_models_in_one_call(tmp_path: Path) -> None:
    told = Recorder()
    with Ledger.open(tmp_path / "l") as ledger, asking(ledger, emit=told) as caller:
        pairs = [(FakeProvider("a"), ask("q")), (FakeBatch(), ask("q")), (FakeProvider("a"), ask("r"))]
        results = caller.ask_all(pairs, task="t")
    assert texts(results) == ["a says q", "q among ['q']", "a says r"]
    assert [s["calls"] for s in caller.summary()] == [2, 1]
    last = [e for e in told.events if isinstance(e, Calls)][-1]
    assert (last.done, last.total) == (3, 3)


def test_a_local_model_reports_progress_without_money(tmp_path: Path) -> None:
    told = Recorder()
    with Ledger.open(tmp_path / "l") as ledger, asking(ledger, emit=told) as caller:
        caller.ask(FakeBatch(), [ask("q"), ask("r")], task="answers")
    assert {type(event) for event in told.events} == {Progress}
    assert told.events[-1] == Progress("answers", 2, 2)


def test_a_reply_that_is_none_fails_its_row(tmp_path: Path) -> None:
    class Half(FakeBatch):
        def raw_in_batch(self, body: object, together: object) -> bytes:
            return b"" if "b" in str(body).split("'content': ")[1] else super().raw_in_batch(body, [])  # type: ignore[arg-type]

    assert run(tmp_path / "l", Half(), ["a", "b", "c"]) == ["a among []", "<bad_envelope>", "c among []"]


def test_rows_that_another_process_computes_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_LOOK_AGAIN", 0.02)
    provider = FakeBatch(3)
    with Ledger.open(tmp_path / "l") as ledger, Ledger.open(tmp_path / "l") as other:
        with asking(ledger, replay=True) as caller:
            job = caller._board.job(provider, ask("a"))
        (attempt,) = other.begin_many([Intent(job.request, 0)], Run("other")).result()
        assert isinstance(attempt, int)
        with (
            pytest.raises(Locked, match=r"pid \d+ on"),
            asking(ledger, sleep=no_sleep, retry=Retry(max_wait=0.1)) as caller,
        ):
            caller.ask(provider, [ask("a"), ask("b")], task="t")
    assert provider.batches == [["a", "b"]]
