"""Calls found by what was asked: for questions about a single row."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zephyrctl.ledger.ledger import Ledger
from zephyrctl.ledger.report import Scope

if TYPE_CHECKING:
    import sqlite3


def calls_about(ledger: Ledger, scope: Scope, text: str) -> list[tuple[str, list[str]]]:
    """The calls in scope whose request holds `text` in one of its strings: key and all strings of the request.

    Reads every request of the scope, about 50,000 a second.
    """
    return _holding(ledger, scope, text, "SELECT key, body_z FROM request WHERE {} ORDER BY created, key")


def replies_with(ledger: Ledger, scope: Scope, text: str) -> list[str]:
    """The keys of the calls in scope whose reply holds `text`; about as fast as `calls_about`."""
    query = (
        "SELECT key, response.body_z FROM response JOIN request USING (key) WHERE {} ORDER BY created, key"
    )
    return [key for key, strings in _holding(ledger, scope, text, query) if holds(strings, text)]


def holds_any(ledger: Ledger, scope: Scope) -> bool:
    """Whether the ledger has any call in scope."""
    condition, values = scope.condition("key")
    query = f"SELECT 1 FROM request WHERE {condition} LIMIT 1"
    return ledger.path.exists() and ledger.read(lambda c: c.execute(query, values).fetchone() is not None)


def _holding(ledger: Ledger, scope: Scope, text: str, query: str) -> list[tuple[str, list[str]]]:
    """Keys and all strings of the bodies that `query` (with a place for the scope's condition) gives and that hold
    `text`. A body is decoded only where its bytes hold it, in one of the two ways that JSON writes it."""
    needles = [
        json.dumps(text, ensure_ascii=ascii_)[1:-1].encode("utf-8", "surrogatepass")
        for ascii_ in (False, True)
    ]

    def look(connection: sqlite3.Connection) -> list[tuple[str, list[str]]]:
        condition, values = scope.condition("key")
        found = []
        for key, packed in connection.execute(query.format(condition), values):
            raw = zlib.decompress(packed)
            if any(needle in raw for needle in needles):
                found.append((str(key), list(_strings(json.loads(raw.decode("utf-8", "surrogatepass"))))))
        return found

    return ledger.read(look) if ledger.path.exists() else []


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from _strings(child)
    elif isinstance(value, list):
        for child in value:
            yield from _strings(child)


def holds(strings: Sequence[str], text: str) -> bool:
    """Whether a request quotes `text` somewhere."""
    return any(text in string for string in strings)
