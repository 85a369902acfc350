"""One request with all that belongs to it, outside its ledger: read from one, checked, added to another."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zephyrctl.ledger.entries import body_text, key_of
from zephyrctl.ledger.report import EVERYTHING, Scope
from zephyrctl.records import explain

State = Literal["inflight", "batched", "ok", "error", "timeout", "in_doubt", "cancelled"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Attempt(_Part):
    """One time the request was sent. `answered` = the reply came from it."""

    run_id: str
    owner: int
    n: int
    state: State
    started: float
    ended: float | None
    http_status: int | None
    request_id: str | None
    error_class: str | None
    reserved_uusd: int | None
    cost_uusd: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    batch: str | None
    answered: bool = False


ATTEMPT_COLUMNS = tuple(name for name in Attempt.model_fields if name != "answered")


class UsedBy(_Part):
    """A run that asked for the request. `uses` = its result needs the reply."""

    id: str
    stage: str
    name: str
    created: float
    uses: bool


class Reply(_Part):
    """The reply as it arrived: as `text` where it is UTF-8, else as `base64`."""

    text: str | None = None
    base64: str | None = None
    sha256: str
    outcome: str
    finish_reason: str
    usage: list[int] | None
    served_model: str
    fingerprint: str | None

    @property
    def body(self) -> bytes:
        """The bytes. Raises ValueError where there are none or both forms."""
        if (self.text is None) == (self.base64 is None):
            raise ValueError("the reply is given as text or as base64")
        if self.text is not None:
            return self.text.encode("utf-8", "surrogatepass")
        return base64.b64decode(self.base64 or "", validate=True)


class Call(_Part):
    """A request, its reply if there is one, its attempts, and the runs that asked for it."""

    format: Literal[1] = 1
    """Number of the shape of a line."""
    key: str
    provider: str
    origin: str
    endpoint: str
    model: str
    draw: int
    created: float
    body: dict[str, Any]
    reply: Reply | None = None
    attempts: list[Attempt] = Field(default_factory=list)
    runs: list[UsedBy] = Field(default_factory=list)

    def problem(self) -> str | None:
        """What is wrong with it: a key that is not its request's, a reply that is not its hash's."""
        found = key_of(
            body_text(self.body),
            provider=self.provider,
            origin=self.origin,
            endpoint=self.endpoint,
            draw=self.draw,
        )
        if found != self.key:
            return f"the key {self.key[:16]}… is not the key of its request"
        if self.reply is not None:
            try:
                digest = hashlib.sha256(self.reply.body).hexdigest()
            except ValueError as error:
                return f"the reply cannot be read ({error})"
            if digest != self.reply.sha256:
                return f"the reply to {self.key[:16]}… does not fit its sha256"
        known = {run.id for run in self.runs}
        if any(attempt.run_id not in known for attempt in self.attempts):
            return "an attempt belongs to a run that is not listed"
        return None

    def line(self) -> str:
        """As one line of JSON, in ASCII."""
        return json.dumps(self.model_dump(exclude_none=False), separators=(",", ":"))


def of_line(text: str | bytes) -> Call:
    """The call in one line, checked. Raises ValueError saying what is wrong with it."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    try:
        call = Call.model_validate(value)
    except ValidationError as error:
        raise ValueError(explain(error)) from None
    problem = call.problem()
    if problem is not None:
        raise ValueError(problem)
    return call


def read_calls(connection: sqlite3.Connection, scope: Scope = EVERYTHING) -> Iterator[Call]:
    """The calls of a ledger in the order of their keys, a few at a time in memory.

    Raises ValueError for one that cannot be unpacked. The caller holds a read transaction.
    """
    condition, values = scope.condition("key")
    runs = {row[0]: row for row in connection.execute("SELECT id, stage, name, created FROM run")}

    def ordered(table: str, columns: str, then: str = "") -> _Walk:
        query = f"SELECT key, {columns} FROM {table} WHERE {condition} ORDER BY key{then}"
        return _Walk(connection.cursor().execute(query, values))

    replies = ordered(
        "response", "body_z, sha256, outcome, finish_reason, usage, model_returned, fingerprint, attempt_id"
    )
    attempts = ordered("attempt", f"id, {', '.join(ATTEMPT_COLUMNS)}", ", id")
    used = ordered("used", "run_id")
    requests = connection.cursor().execute(
        f"""SELECT key, provider, origin, endpoint, model, draw, created, body_z
            FROM request WHERE {condition} ORDER BY key""",
        values,
    )
    for key, provider, origin, endpoint, model, draw, created, packed in requests:
        found = next(iter(replies.at(key)), None)
        tried = attempts.at(key)
        uses = {row[1] for row in used.at(key)}
        yield Call.model_construct(
            format=1,
            key=key,
            provider=provider,
            origin=origin,
            endpoint=endpoint,
            model=model,
            draw=draw,
            created=created,
            body=json.loads(_unpacked(packed, key).decode("utf-8", "surrogatepass")),
            reply=_reply(found) if found else None,
            attempts=[_attempt(row, found) for row in tried],
            runs=[_run(runs, run_id, run_id in uses) for run_id in sorted(uses | {row[2] for row in tried})],
        )


class _Walk:
    """Rows in the order of their first column, taken by its value as a reader comes past it."""

    def __init__(self, rows: Iterator[tuple[Any, ...]]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def at(self, key: str) -> list[tuple[Any, ...]]:
        """The rows of `key`; keys are asked for in rising order, and rows of others are passed over."""
        found = []
        while self._next is not None and self._next[0] <= key:
            if self._next[0] == key:
                found.append(self._next)
            self._next = next(self._rows, None)
        return found


def _unpacked(packed: bytes, key: str) -> bytes:
    try:
        return zlib.decompress(packed)
    except zlib.error:
        raise ValueError(f"what is stored for the key {key[:16]}… cannot be unpacked") from None


def _reply(row: Sequence[Any]) -> Reply:
    key, packed, digest, outcome, finish_reason, usage, served, fingerprint, _ = row
    body = _unpacked(packed, key)
    try:
        forms = {"text": body.decode("utf-8")}
    except UnicodeDecodeError:
        forms = {"base64": base64.b64encode(body).decode("ascii")}
    return Reply.model_construct(
        text=forms.get("text"),
        base64=forms.get("base64"),
        sha256=digest,
        outcome=outcome,
        finish_reason=finish_reason,
        usage=json.loads(usage) if usage else None,
        served_model=served,
        fingerprint=fingerprint,
    )


def _attempt(row: Sequence[Any], reply: Sequence[Any] | None) -> Attempt:
    columns = dict(zip(ATTEMPT_COLUMNS, row[2:], strict=True))
    return Attempt.model_construct(**columns, answered=reply is not None and reply[-1] == row[1])


def _run(runs: dict[str, tuple[Any, ...]], run_id: str, uses: bool) -> UsedBy:
    _, stage, name, created = runs.get(run_id, (run_id, "", "", 0.0))
    return UsedBy.model_construct(id=run_id, stage=stage, name=name, created=created, uses=uses)
