"""The money of runs and of the whole ledger: what is settled, reserved and in doubt, and whether more fits.

The rows of `spend` are the sums over the attempts, changed in the same transactions as these. An attempt counts
as reserved while it is open, as settled with its cost when it has a reply, as in doubt with its reservation when
it may have been billed without one, and not at all otherwise.
"""

from __future__ import annotations

import sqlite3
from typing import Literal

from zephyrctl.ledger.entries import Budget, NoRoom, Spend

ALL = "all"
"""The scope of the whole ledger."""


def run_scope(run_id: str) -> str:
    """The scope of one run."""
    return f"run:{run_id}"


def read_spend(connection: sqlite3.Connection, scope: str) -> Spend:
    """The sums of a scope, zero for one without attempts."""
    row = connection.execute(
        "SELECT settled_uusd, reserved_uusd, doubt_uusd FROM spend WHERE scope = ?", (scope,)
    ).fetchone()
    return Spend(*row) if row else Spend()


class Books:
    """The sums of the scopes that one transaction touches: read once, changed in memory, written by `save`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._all = _Sums(ALL, connection)
        self._runs: dict[str, _Sums] = {}

    def add(self, run_id: str, *, settled: int = 0, reserved: int = 0, doubt: int = 0) -> None:
        """Change the sums of a run and of the whole ledger, in uusd."""
        for sums in (self._run(run_id), self._all):
            sums.settled += settled
            sums.reserved += reserved
            sums.doubt += doubt

    def release(self, run_id: str, state: str, reserved: int) -> None:
        """Take an attempt's reservation out of where its state has put it."""
        if state in ("inflight", "batched"):
            self.add(run_id, reserved=-reserved)
        elif state in ("timeout", "in_doubt"):
            self.add(run_id, doubt=-reserved)

    def refusal(self, run_id: str, need: int, budget: Budget) -> NoRoom | None:
        """Why a reservation of `need` uusd does not fit; None where it does. What costs nothing always fits.

        Where both limits refuse, the one that leaves less is told.
        """
        if need == 0 or not budget.limited:
            return None
        limits: list[tuple[Literal["step", "project"], _Sums, int | None]] = [
            ("step", self._run(run_id), budget.step),
            ("project", self._all, budget.project),
        ]
        refusals = [
            NoRoom(name, limit, sums.spent, sums.reserved, need)
            for name, sums, limit in limits
            if limit is not None and sums.spent + sums.reserved + need > limit
        ]
        return min(refusals, key=lambda refusal: refusal.limit - refusal.spent, default=None)

    def save(self) -> None:
        """Write the sums, if there are any changes to write."""
        if self._runs:
            self._connection.executemany(
                "INSERT OR REPLACE INTO spend VALUES (?, ?, ?, ?)",
                [(s.scope, s.settled, s.reserved, s.doubt) for s in (self._all, *self._runs.values())],
            )

    def _run(self, run_id: str) -> _Sums:
        sums = self._runs.get(run_id)
        if sums is None:
            sums = self._runs[run_id] = _Sums(run_scope(run_id), self._connection)
        return sums


class _Sums:
    """The sums of one scope, on their way to new values."""

    def __init__(self, scope: str, connection: sqlite3.Connection) -> None:
        there = read_spend(connection, scope)
        self.scope = scope
        self.settled, self.reserved, self.doubt = there.settled, there.reserved, there.doubt

    @property
    def spent(self) -> int:
        return self.settled + self.doubt
