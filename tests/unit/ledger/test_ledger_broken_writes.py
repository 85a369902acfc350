"""Every statement that writes fails once: what was promised stands, what failed is not there, the sums are right."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.errors import EnvironmentFault
from zephyrctl.ledger.connection import connect
from zephyrctl.ledger.entries import Batch, Budget, Ended, Finished, Intent, Request, Run, Spend, StoredReply
from zephyrctl.ledger.ledger import Ledger

RUN = Run("run", "gen-sft")
BUDGET = Budget(step=1000)


class Breaking:
    """A connection whose `at`-th call fails. `late`: the call is done first, as when a machine stops right after."""

    def __init__(self, real: sqlite3.Connection, at: int, late: bool) -> None:
        self.real = real
        self.left = at
        self.late = late

    def _call(self, name: str, *args: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self.late:
            raise sqlite3.OperationalError("disk I/O error")
        done = getattr(self.real, name)(*args)
        if self.left == 0:
            raise sqlite3.OperationalError("disk I/O error")
        return done

    def execute(self, *args: Any) -> Any:
        return self._call("execute", *args)

    def executemany(self, *args: Any) -> Any:
        return self._call("executemany", *args)

    def close(self) -> None:
        self.real.close()


def request(n: int) -> Request:
    return Request.of(provider="p", origin="o", endpoint="e", model="p:m", body={"n": n}, draw=0)


def reply(n: int) -> StoredReply:
    return StoredReply(b"answer %d" % n, "text", "stop", None, "m-1")


def work(ledger: Ledger, told: set[str]) -> None:
    """Answers five requests, adding to `told` what the ledger says it has."""
    batch = Batch("b-1", "p", "o", "p:m", "run", "building")
    intents = [Intent(request(n), 10) for n in range(5)]
    begun = ledger.begin_many(intents[:3], RUN, BUDGET).result()
    first = [Finished(a, request(n).key, reply(n), 4) for n, a in enumerate(begun) if isinstance(a, int)]
    for item, stored in zip(first, ledger.finish_many(first[:2]).result(), strict=False):
        assert stored == item.reply
        told.add(item.key)
    ledger.fail_many([Ended(item.attempt, "timeout", "timeout") for item in first[2:]]).result()
    ledger.begin_batch(batch, intents[3:], RUN, BUDGET).result()
    ledger.set_batch("b-1", state="open", remote_id="r").result()
    attempts = ledger.batched_attempts("b-1")
    last = [Finished(attempt, key, reply(9), 4) for key, attempt in attempts.items()]
    ledger.finish_many(last).result()
    told |= set(attempts)


_SUMS = """
    SELECT SUM(CASE WHEN state = 'ok' THEN cost_uusd ELSE 0 END),
           SUM(CASE WHEN state IN ('inflight', 'batched') THEN reserved_uusd ELSE 0 END),
           SUM(CASE WHEN state IN ('in_doubt', 'timeout') THEN reserved_uusd ELSE 0 END) FROM attempt
"""


def check(path: Path, told: set[str]) -> None:
    """What every moment must leave behind."""
    with Ledger.open(path) as ledger:
        ledger.recover()
        assert told <= set(ledger.known(request(n).key for n in range(5)))
        assert ledger.known(told).keys() == told
        sums = ledger.read(lambda c: c.execute(_SUMS).fetchone())
        assert ledger.spend() == ledger.spend("run") == Spend(*(value or 0 for value in sums))
        held = "SELECT attempt FROM lease ORDER BY 1"
        open_ = "SELECT id FROM attempt WHERE state IN ('inflight', 'batched') ORDER BY 1"
        assert ledger.read(lambda c: c.execute(held).fetchall() == c.execute(open_).fetchall())
        # and it can be worked with: every request that has no reply can be begun or waits in its batch
        begun = ledger.begin_many([Intent(request(n), 10) for n in range(5)], RUN).result()
        waiting = set(ledger.batched_attempts("b-1"))
        assert all(
            isinstance(there, int | StoredReply) or request(n).key in waiting for n, there in enumerate(begun)
        )


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_write_that_fails_anywhere_leaves_a_sound_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    finished = 0
    at = 0
    while not finished:
        at += 1
        path = tmp_path / f"l{at}"
        writers: list[Breaking] = []

        def breaking(
            where: Path, *, wal: bool, at: int = at, writers: list[Breaking] = writers
        ) -> sqlite3.Connection:
            # the first connection of this work is the writer's
            opened = connect(where, wal=wal)
            if writers:
                return opened
            writers.append(Breaking(opened, at, late))
            return writers[0]  # type: ignore[return-value]

        told: set[str] = set()
        with monkeypatch.context() as patch:
            patch.setattr("zephyrctl.ledger.ledger.connect", breaking)
            ledger = Ledger.open(path)
            with contextlib.suppress(EnvironmentFault):
                work(ledger, told)
                finished = at
            ledger.close()
        assert finished or writers[0].left <= 0
        check(path, told)
    # the sweep went through every statement of a few transactions
    assert finished > 40
    assert len(told) == 4
