"""Batches at the loopback teacher, before they take a vendor's form: rows, progress, and what came of each row."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zephyrctl.testing.documents import Api
from zephyrctl.testing.replies import check_mode
from zephyrctl.testing.serving import Wire

ROW_MODES: Mapping[str, str] = {
    "error": "the request is refused (an error row)",
    "expired": "not done in time",
    "missing": "no line comes out",
    "duplicate": "its line comes out twice",
    "unknown": "beside its own line comes one with a custom_id that nobody sent",
    "object": "status 200 with {} for a reply",
}
"""Modes of a row beside those of a call (`ok`, `length`, `refusal`, …, and statuses as error rows)."""

LOST_REPLY = frozenset(
    {"drop", "rst", "hang", "no_reply", "drip", "truncated", "html", "object", "null", "nothing"}
)
"""Faults of a batch endpoint that come after its work was done: a batch was made, but the client is not told."""

OPERATIONS = ("upload", "create", "poll", "list", "file", "content", "delete", "results", "cancel")

Work = Callable[[str, Api, Mapping[str, Any], str], dict[str, Any]]
"""Answer and bill one row: (mode, API, body, key of the client)."""
ChooseMode = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class BulkPlan:
    """How batches go.

    `polls`: how many looks at a batch still find it in progress. `outcomes`: of the first batches `ok`, `failed`
    (`failed:CODE`) or `expired` (the second half of the rows is not done), then `ok`. `shuffled`: results come in
    another order than the rows. `max_bytes`: a larger file or request gets 413. `faults`: modes of the first calls
    of an operation (see `OPERATIONS`), then none.
    """

    polls: int = 1
    outcomes: Sequence[str] = ()
    shuffled: bool = True
    max_bytes: int | None = None
    faults: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for an operation or a mode of a fault that does not exist."""
        for operation, modes in self.faults.items():
            if operation not in OPERATIONS:
                raise ValueError(
                    f"batches know no operation {operation!r}; they know {', '.join(OPERATIONS)}"
                )
            for mode in modes:
                check_mode(mode)


@dataclass(frozen=True)
class Row:
    """One request of a batch."""

    custom_id: str
    body: Mapping[str, Any]
    api: Api


@dataclass(frozen=True)
class Result:
    """What came of a row: its document, or the status of the error."""

    custom_id: str
    kind: Literal["succeeded", "errored", "expired", "canceled"]
    document: dict[str, Any] | None = None
    status: int = 200


State = Literal["running", "cancelling", "ended", "failed", "expired", "cancelled"]


@dataclass
class Bulk:
    """One batch, from its submission on. `number` counts submissions; times are Unix seconds."""

    id: str
    number: int
    rows: list[Row]
    key: str
    metadata: dict[str, str]
    outcome: str = "ok"
    errors: list[dict[str, Any]] = field(default_factory=list)
    endpoint: str = ""
    input_file: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    polls: int = 0
    state: State = "running"
    results: list[Result] = field(default_factory=list)
    output_file: str | None = None
    error_file: str | None = None

    @property
    def running(self) -> bool:
        """Whether nothing has come out yet."""
        return self.state in ("running", "cancelling")

    def count(self, *kinds: str) -> int:
        """Rows that ended in one of these ways."""
        return sum(result.kind in kinds for result in self.results)


class BulkStore:
    """All batches handed in, in order; they live as long as the server."""

    def __init__(self, plan: BulkPlan, *, choose: ChooseMode, work: Work) -> None:
        self.plan = plan
        self.batches: list[Bulk] = []
        self._choose = choose
        self._work = work
        self._calls: dict[str, int] = {}

    def fault(self, operation: str) -> str | None:
        """The fault that meets this call of an operation, if one is scripted."""
        number = self._calls[operation] = self._calls.get(operation, 0) + 1
        modes = self.plan.faults.get(operation, ())
        mode = modes[number - 1] if number <= len(modes) else "ok"
        return None if mode == "ok" else mode

    def submit(self, prefix: str, rows: list[Row], *, key: str, metadata: dict[str, str]) -> Bulk:
        """A new batch; it starts at once."""
        number = len(self.batches)
        outcomes = self.plan.outcomes
        bulk = Bulk(
            f"{prefix}{number:06d}",
            number,
            rows,
            key,
            metadata,
            outcome=outcomes[number] if number < len(outcomes) else "ok",
        )
        self.batches.append(bulk)
        return bulk

    def find(self, identity: str) -> Bulk | None:
        """The batch of this name."""
        return next((bulk for bulk in self.batches if bulk.id == identity), None)

    def poll(self, bulk: Bulk) -> None:
        """Let time go by for a batch: a look at it brings it nearer to its end."""
        if bulk.state == "cancelling":
            self._end(bulk, "cancelled")
        elif bulk.state == "running":
            if bulk.errors:
                bulk.state = "failed"
            elif bulk.polls >= self.plan.polls:
                self._finish(bulk)
            bulk.polls += 1

    def cancel(self, bulk: Bulk) -> None:
        """Begin to stop a batch: the first half of its rows is done by then."""
        if bulk.state == "running":
            bulk.state = "cancelling"

    def page(self, prefix: str, query: Mapping[str, str], after: str) -> tuple[list[Bulk], bool]:
        """The batches of a vendor, newest first, from `after` on, and whether there are more."""
        found = [bulk for bulk in reversed(self.batches) if bulk.id.startswith(prefix)]
        ids = [bulk.id for bulk in found]
        start = ids.index(query[after]) + 1 if query.get(after) in ids else 0
        limit = int(query.get("limit") or 20)
        return found[start : start + limit], len(found) > start + limit

    def _finish(self, bulk: Bulk) -> None:
        name, _, code = bulk.outcome.partition(":")
        if name == "failed":
            bulk.state = "failed"
            bulk.errors = [
                {"code": code or "scripted", "message": "scripted failure", "line": None, "param": None}
            ]
        else:
            self._end(bulk, "expired" if name == "expired" else "ended")

    def _end(self, bulk: Bulk, state: State) -> None:
        bulk.state = state
        whole = len(bulk.rows) if state == "ended" else len(bulk.rows) // 2
        for row in bulk.rows[:whole]:
            bulk.results += self._result(bulk, row)
        left: Literal["expired", "canceled"] = "expired" if state == "expired" else "canceled"
        bulk.results += [Result(row.custom_id, left) for row in bulk.rows[whole:]]
        if self.plan.shuffled:
            bulk.results.sort(key=lambda result: hashlib.sha256(result.custom_id.encode()).digest())

    def _result(self, bulk: Bulk, row: Row) -> list[Result]:
        mode = self._choose(row.body)
        if mode == "missing":
            return []
        if mode == "expired":
            return [Result(row.custom_id, "expired")]
        if mode == "error" or mode.isdecimal():
            return [Result(row.custom_id, "errored", status=400 if mode == "error" else int(mode))]
        if mode == "object":
            return [Result(row.custom_id, "succeeded", {})]
        special = mode in ROW_MODES
        document = self._work("ok" if special else mode, row.api, row.body, bulk.key)
        result = Result(row.custom_id, "succeeded", document)
        other = {"duplicate": [result], "unknown": [Result(f"unknown-{bulk.number}", "succeeded", document)]}
        return [result, *other.get(mode, [])]


def check_row_mode(mode: str) -> str:
    """The mode itself. Raises ValueError where rows have none of this name."""
    return mode if mode in ROW_MODES else check_mode(mode)


def json_wire(document: object) -> Wire:
    """A reply of status 200 with a JSON document."""
    return Wire(200, json.dumps(document).encode(), {"content-type": "application/json"})
