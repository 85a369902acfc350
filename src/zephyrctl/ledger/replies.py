"""Requests and replies as rows: packed, unpacked and checked, looked up many at a time."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zephyrctl.errors import IntegrityError
from zephyrctl.ledger.entries import Finished, Request, StoredReply, body_text
from zephyrctl.money import Tokens

# A small window and small tables: for bodies of a few KB, setting up zlib's usual ones costs eight times the rest.
_WINDOW_BITS = 13
_MEMORY_LEVEL = 6
_SIZES = (1, 8, 32, 128, 512)
_MARKS = {size: ",".join("?" * size) for size in _SIZES}


def packed(data: bytes) -> bytes:
    """Zlib-compressed bytes, made for speed."""
    pack = zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL)
    return pack.compress(data) + pack.flush()


def select(
    connection: sqlite3.Connection, query: str, values: Sequence[str] | Sequence[int]
) -> list[tuple[Any, ...]]:
    """The rows of a query that holds `IN ({})`, for any number of values, in no particular order.

    Lists of values are filled up with NULL to one of a few lengths, so that few statements are ever prepared.
    """
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(values), _SIZES[-1]):
        part = values[start : start + _SIZES[-1]]
        size = next(size for size in _SIZES if size >= len(part))
        rows += connection.execute(query.format(_MARKS[size]), (*part, *(None,) * (size - len(part))))
    return rows


def replies(connection: sqlite3.Connection, keys: Iterable[str], path: Path) -> dict[str, StoredReply]:
    """The replies that are here, by key.

    Raises IntegrityError for one whose bytes are not what was stored; `path` names the ledger in it.
    """
    query = """SELECT key, body_z, sha256, outcome, finish_reason, usage, model_returned, fingerprint
               FROM response WHERE key IN ({})"""
    found = {}
    sha256, unpack = hashlib.sha256, zlib.decompress
    for key, body_z, digest, outcome, finish, usage, served, fingerprint in select(
        connection, query, list(keys)
    ):
        try:
            body = unpack(body_z)
            # three times as fast as a JSON parser, in what a replay does most
            tokens = Tokens(*map(int, usage[1:-1].split(","))) if usage else None
        except (zlib.error, ValueError, TypeError):
            raise _damaged(path, key) from None
        if sha256(body).hexdigest() != digest:
            raise _damaged(path, key)
        found[key] = StoredReply(body, outcome, finish, tokens, served, fingerprint or "")
    return found


def _damaged(path: Path, key: str) -> IntegrityError:
    return IntegrityError(
        f"the ledger {path} holds a damaged reply (key {key[:16]}…)",
        hint="put a good copy of the ledger in its place, or name another with ZEPHYRCTL_LEDGER",
    )


def write_requests(connection: sqlite3.Connection, requests: Sequence[Request], now: float) -> int:
    """Write requests that are not here yet; how many these were."""
    rows = (
        (r.key, packed(r.text or body_text(r.body)), r.provider, r.origin, r.endpoint, r.model, r.draw, now)
        for r in requests
    )
    cursor = connection.executemany("INSERT OR IGNORE INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    return max(0, cursor.rowcount)


def write_replies(connection: sqlite3.Connection, finished: Iterable[Finished]) -> None:
    """Write replies of requests that have none."""
    rows = []
    for item in finished:
        reply = item.reply
        usage = json.dumps(usage_row(reply.tokens)) if reply.tokens else None
        digest = hashlib.sha256(reply.body).hexdigest()
        rows.append(
            (
                item.key,
                packed(reply.body),
                digest,
                reply.outcome,
                reply.finish_reason,
                usage,
                reply.served_model,
                reply.fingerprint,
                item.attempt,
            )
        )
    connection.executemany("INSERT INTO response VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def usage_row(tokens: Tokens | None) -> tuple[int | None, ...]:
    """Token counts in the order of the `usage` list and of an attempt's columns; five times None if unknown."""
    if tokens is None:
        return (None,) * 5
    return tokens.prompt, tokens.completion, tokens.cached, tokens.cache_write, tokens.reasoning


def note_used(connection: sqlite3.Connection, run_id: str, keys: Iterable[str]) -> None:
    """Write that a run needs the replies to these requests."""
    # In order of the keys: neighbours on one page are written together.
    connection.executemany(
        "INSERT OR IGNORE INTO used VALUES (?, ?)", [(run_id, key) for key in sorted(keys)]
    )
