"""Parts side by side: order, how many at once, the first error, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from provider_fakes import FakeBatch, FakeProvider, ask, asking, said, texts

from zephyrctl.errors import AuthError, StageRejected
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.calling.overlap import overlapping


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def nothing(error: BaseException) -> None:
    """Nobody needs to be told."""


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_results_in_order_and_no_more_than_allowed_at_once(ahead: int) -> None:
    lock = threading.Lock()
    begun: list[int] = []

    def work(part: int) -> int:
        with lock:
            begun.append(part)
        time.sleep(0.001 * (part % 3))
        return part * part

    seen = []
    for place, result in enumerate(overlapping(range(12), work, ahead, nothing)):
        assert max(begun) <= place + ahead
        seen.append(result)
    assert seen == [n * n for n in range(12)]


def test_a_straggler_does_not_hold_up_the_next_part() -> None:
    later = threading.Event()

    def work(part: int) -> int:
        if part == 0:
            assert later.wait(10)
        else:
            later.set()
        return part

    assert list(overlapping(range(3), work, 1, nothing)) == [0, 1, 2]


def test_the_first_error_is_raised_once_and_the_others_are_told() -> None:
    told: list[BaseException] = []
    given_up = threading.Event()

    def give_up(error: BaseException) -> None:
        told.append(error)
        given_up.set()

    def work(part: int) -> int:
        if part == 2:
            raise StageRejected("no")
        if part == 0:
            assert given_up.wait(10)
            raise RuntimeError("made to end")
        return part

    with pytest.raises(StageRejected):
        list(overlapping(range(9), work, 2, give_up))
    assert isinstance(told[0], StageRejected)


def test_results_nobody_wants_any_more_end_the_work() -> None:
    told: list[BaseException] = []
    results = overlapping(range(9), lambda part: part, 2, told.append)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert [type(error) for error in told] == [GeneratorExit]


def test_parts_share_one_caller_and_pay_once(ledger: Ledger) -> None:
    provider, local = FakeProvider(), FakeBatch()

    def work(part: int) -> list[str]:
        first = caller.ask(provider, [ask("shared"), ask(f"row {part}")], task="a")
        return texts([*first, *caller.ask(local, [ask(f"local {part}")], task="b")])

    with asking(ledger) as caller:
        results = list(caller.overlap(range(10), work))
    assert [r[1] for r in results] == [f"fake says row {n}" for n in range(10)]
    assert provider.sent.count("shared") == 1
    assert len(local.batches) == 10


def test_a_fatal_error_in_one_part_ends_all(ledger: Ledger) -> None:
    async def script(body: Mapping[str, Any], times: int) -> None:
        if said(body) == "row 4":
            raise AuthError("no")

    provider = FakeProvider(script=script)

    def work(part: int) -> list[str]:
        return texts(caller.ask(provider, [ask(f"row {part}")], task="t"))

    with asking(ledger) as caller, pytest.raises(AuthError):
        list(caller.overlap(range(50), work))
    assert len(provider.sent) <= 8
    assert not [t for t in threading.enumerate() if t.name.startswith(("part", "calls"))]


def test_an_error_of_the_reader_ends_the_parts(ledger: Ledger) -> None:
    provider = FakeProvider()

    def work(part: int) -> list[str]:
        return texts(caller.ask(provider, [ask(f"row {part}")], task="t"))

    def read() -> None:
        for _ in caller.overlap(range(50), work):
            raise OSError("disk full")

    with asking(ledger) as caller, pytest.raises(OSError, match="disk full"):
        read()
    assert len(provider.sent) <= 8
