"""Requests as a file for a machine that is not reachable from here, and its replies back into the ledger.

The lines are those of OpenAI's Batch API, which `vllm run-batch` reads and writes too.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from zephyrctl.artifacts import durable
from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.ledger.entries import Finished, InBatch, Intent, Leased, Request, Run, StoredReply
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.ledger.transfer import LONGEST_LINE
from zephyrctl.money import FREE, Price
from zephyrctl.providers.base import BatchResult, Retryable
from zephyrctl.providers.calling.job import stored
from zephyrctl.providers.hosted.endpoints import Place
from zephyrctl.providers.hosted.openai import OpenAIProvider
from zephyrctl.providers.hosted.openai_batch import read_result, request_line
from zephyrctl.providers.hosted.provider import HostedProvider
from zephyrctl.providers.hosted.responses import ResponsesProvider

IMPORT_RUN = Run("batch-import", "ledger", "batch import")
"""What imported replies are booked to."""
_READERS: dict[str, type[HostedProvider]] = {
    OpenAIProvider.endpoint: OpenAIProvider,
    ResponsesProvider.endpoint: ResponsesProvider,
}
_GROUP = 256
_TOO_LONG = f"longer than {LONGEST_LINE:,} bytes"
_WAITING = """
    FROM request r WHERE r.endpoint IN ({endpoints})
    AND NOT EXISTS (SELECT 1 FROM response WHERE key = r.key) AND NOT EXISTS (SELECT 1 FROM lease WHERE key = r.key)
    AND (:origin IS NULL OR r.origin = :origin)
    AND (:model IS NULL OR r.model = :model OR substr(r.model, instr(r.model, ':') + 1) = :model)
    AND (:run IS NULL OR EXISTS (SELECT 1 FROM used WHERE run_id = :run AND key = r.key))
""".format(endpoints=", ".join(f"'{endpoint}'" for endpoint in _READERS))


@dataclass
class Imported:
    """What came of the lines of a file with replies.

    `stored` = new replies; `already` = replies that were here; `errors` = lines that report an error, whose requests
    still wait; `unknown` = custom ids that are no request of this ledger; `busy` = requests that are being asked by
    another process or in an open batch; `bad` = `file:line: why` of lines that cannot be read.
    """

    stored: int = 0
    already: int = 0
    errors: int = 0
    unknown: int = 0
    busy: int = 0
    bad: list[str] = field(default_factory=list)


def export_requests(
    ledger: Ledger, out: Path, *, origin: str | None = None, model: str | None = None, run: str | None = None
) -> int:
    """Write the requests that have no reply and are not being asked to `out`; how many these are.

    `origin`, `model` (with or without its provider) and `run` (its id) choose among them. The file is there whole or
    not at all, and not where nothing waits.

    Raises UsageError where the requests are for more than one model, EnvironmentFault for a full disk.
    """
    ledger.recover()
    choice = {"origin": origin, "model": model, "run": run}

    def look(connection: sqlite3.Connection) -> int:
        query = f"SELECT r.model, r.origin, COUNT(*) {_WAITING} GROUP BY 1, 2 ORDER BY 1, 2"
        models = connection.execute(query, choice).fetchall()
        if len(models) > 1:
            listed = ", ".join(f"{name} at {where} ({number:,})" for name, where, number in models)
            raise UsageError(
                f"requests for several models wait: {listed}",
                hint="a file holds one model: choose with --model NAME (and --origin)",
            )
        if not models:
            return 0
        query = f"SELECT r.key, r.endpoint, r.body_z {_WAITING} ORDER BY r.created, r.key"
        rows = connection.execute(query, choice)
        return _write(out, (request_line(key, f"/v1{where}", _body(z)) for key, where, z in rows))

    return ledger.read(look)


def import_replies(ledger: Ledger, path: Path, *, price: Price = FREE) -> Imported:
    """Store the replies in a file under the requests that they belong to; a second time nothing changes.

    `price` is what they cost; free by default, as on a cluster of one's own.

    Raises RefNotFound where there is no such file, and the ledger's errors.
    """
    counts = Imported()
    try:
        with path.open("rb") as file:
            for group in _groups(file):
                _import(ledger, path, group, price, counts)
    except FileNotFoundError:
        raise RefNotFound(f"there is no file {path}", hint="vllm run-batch writes it with -o") from None
    return counts


def _write(out: Path, lines: Iterator[bytes]) -> int:
    number = 0
    unfinished = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    with durable.faults(out):
        durable.make_dir(out.parent)
        file = durable.NewFile(unfinished)
        try:
            for line in lines:
                file.write(line)
                number += 1
            file.close()
            durable.rename(unfinished, out)
        except BaseException:
            file.abandon()
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        durable.sync_dir(out.parent)
    return number


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of one that is too long, its beginning alone, which is too long as well."""
    while line := file.readline(LONGEST_LINE + 1):
        yield line
        while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE + 1)


def _groups(file: IO[bytes]) -> Iterator[list[tuple[int, bytes]]]:
    group: list[tuple[int, bytes]] = []
    for number, line in enumerate(_lines(file), 1):
        if line.strip():
            group.append((number, line))
        if len(group) >= _GROUP:
            yield group
            group = []
    yield group


def _import(
    ledger: Ledger, path: Path, group: Sequence[tuple[int, bytes]], price: Price, counts: Imported
) -> None:
    results: dict[str, tuple[int, BatchResult]] = {}
    for number, line in group:
        if len(line) > LONGEST_LINE:
            counts.bad.append(f"{path}:{number}: {_TOO_LONG}")
            continue
        result = read_result(line)
        if result is None:
            counts.bad.append(f"{path}:{number}: not a line of a batch's output (no JSON with a custom_id)")
        elif result.body is None:
            counts.errors += 1
        elif result.custom_id in results:
            counts.already += 1
        else:
            results[result.custom_id] = (number, result)
    requests = _requests(ledger, list(results))
    counts.unknown += len(results) - len(requests)
    fresh: list[tuple[Request, StoredReply]] = []
    for key, request in requests.items():
        number, result = results[key]
        assert result.body is not None
        try:
            fresh.append((request, stored(result.body, _reader(request).read(result.body))))
        except Exception as error:
            # whatever is in one line, the others are taken in
            why = error.detail if isinstance(error, Retryable) else f"cannot be read ({type(error).__name__})"
            counts.bad.append(f"{path}:{number}: {why}")
    if fresh:
        _store(ledger, fresh, price, counts)


def _store(
    ledger: Ledger, fresh: Sequence[tuple[Request, StoredReply]], price: Price, counts: Imported
) -> None:
    begun = ledger.begin_many([Intent(request, 0) for request, _ in fresh], IMPORT_RUN).result()
    finished: list[Finished] = []
    for (request, reply), there in zip(fresh, begun, strict=True):
        if isinstance(there, int):
            cost = price.cost(reply.tokens, batch=True) if reply.tokens else 0
            finished.append(Finished(there, request.key, reply, cost))
        counts.already += isinstance(there, StoredReply)
        counts.busy += isinstance(there, Leased | InBatch)
    ledger.finish_many(finished).result()
    counts.stored += len(finished)


def _requests(ledger: Ledger, keys: Sequence[str]) -> dict[str, Request]:
    """The requests of these keys that a reply of this form can belong to."""
    query = "SELECT key, provider, origin, endpoint, model, body_z, draw FROM request WHERE key = ?"

    def look(connection: sqlite3.Connection) -> dict[str, Request]:
        # no key holds a lone surrogate, and the database takes none
        rows = [connection.execute(query, (key,)).fetchone() for key in keys if key.isascii()]
        found = (row for row in rows if row is not None and row[3] in _READERS)
        return {
            key: Request(key, provider, origin, endpoint, model, _body(z), draw)
            for key, provider, origin, endpoint, model, z, draw in found
        }

    return ledger.read(look)


def _reader(request: Request) -> HostedProvider:
    return _READERS[request.endpoint](request.model, Place((), request.origin, offline=True))


def _body(packed: bytes) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(zlib.decompress(packed).decode("utf-8", "surrogatepass"))
    return body
