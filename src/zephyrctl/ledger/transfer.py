"""Calls out of one ledger and into another: as JSON Lines for people and archives, or straight from file to file.

What is taken in is checked first: every key is computed anew from its request, every reply against its hash. Only
what is missing is added, so doing it twice changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import itertools
import os
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from zephyrctl.errors import (
    BadRow,
    EnvironmentFault,
    IntegrityError,
    RefNotFound,
    UsageError,
    ZephyrError,
    no_space,
)
from zephyrctl.ledger.absorb import Taken, absorb
from zephyrctl.ledger.calls import Call, of_line, read_calls
from zephyrctl.ledger.connection import as_it_is, fault
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.ledger.report import EVERYTHING, Scope
from zephyrctl.ledger.schema import MIGRATIONS, schema_version

CHUNK = 500
LONGEST_LINE = 64 << 20
"""Bytes of one line that is taken in."""
_GZIP = b"\x1f\x8b"


class Sink(Protocol):
    """Something that takes bytes: an open file, a compressor, standard output."""

    def write(self, data: bytes, /) -> object: ...


@dataclass
class Given:
    """What was written out."""

    requests: int = 0
    replies: int = 0


# --- out ---


def export(ledger: Ledger, out: Sink, scope: Scope = EVERYTHING) -> Given:
    """Write the calls of `scope` as JSON Lines, one request a line, in the order of their keys.

    Raises IntegrityError for a call that is damaged.
    """

    def look(connection: sqlite3.Connection) -> Given:
        given = Given()
        with _snapshot(connection):
            for call in _sound(read_calls(connection, scope), ledger.path):
                out.write(call.line().encode("ascii") + b"\n")
                given.requests += 1
                given.replies += call.reply is not None
        return given

    return ledger.read(look)


def export_file(ledger: Ledger, path: Path, scope: Scope = EVERYTHING) -> Given:
    """`export` into a file that is there whole or not at all; compressed where its name ends in `.gz`.

    Raises EnvironmentFault when it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as raw:
            if path.name.endswith(".gz"):
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed:
                    given = export(ledger, packed, scope)
            else:
                given = export(ledger, raw, scope)
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _disk(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)
    return given


# --- in ---


def load(ledger: Ledger, path: Path, shown: str | None = None) -> Taken:
    """Take in what `export` wrote, compressed or not; `shown` names the file in messages.

    All lines are checked before the first is taken in. Raises BadRow naming file and line, RefNotFound.
    """
    shown = shown or str(path)
    if path.exists() and not path.is_file():
        raise UsageError(
            f"{shown} is no plain file, and it is read twice", hint="give a file, or - for stdin"
        )
    if not path.is_file():
        raise RefNotFound(f"no such file: {shown}", hint="give a file that zephyrctl ledger export wrote")
    before = _state(path)
    for _ in _calls(path, shown):
        pass
    if _state(path) != before:
        raise IntegrityError(
            f"{shown} was changed while it was being read", hint="run the same command again"
        )
    return _take(ledger, _calls(path, shown))


def merge(ledger: Ledger, other: Path) -> Taken:
    """Take in another ledger: requests, replies, attempts with their costs, runs and batches.

    The other file stays as it is; one of an older schema is brought up to date as a copy. Raises RefNotFound,
    UsageError for the ledger itself, IntegrityError for a damaged one; what was taken in before stays.
    """
    if not other.is_file():
        raise RefNotFound(
            f"no ledger at {other}", hint="give the file of a ledger, such as ledger.shard-1-of-8.sqlite"
        )
    if ledger.path.exists() and ledger.path.samefile(other):
        raise UsageError(f"{other} is the ledger itself", hint="name the ledgers whose calls are to come in")
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Ledger.open(_current(other, ledger.path.parent, stack)))

        def look(connection: sqlite3.Connection) -> Taken:
            with _snapshot(connection):
                batches = connection.execute("SELECT * FROM batch").fetchall()
                ledger.write(lambda ours: _batches(ours, batches, settle=False)).result()
                calls = _sound(read_calls(connection), other)
                taken = _take(ledger, calls, [row[0] for row in batches])
                ledger.write(lambda ours: _batches(ours, batches, settle=True)).result()
            return taken

        return source.read(look)


def start_from(path: Path, other: Path) -> int | None:
    """Make the ledger at `path`, which is not there yet, with the requests and replies of `other` and nothing of its
    money; how many replies. None, and nothing done, where `path` is there or `other` is not.
    """
    if path.exists() or not other.is_file():
        return None
    with tempfile.TemporaryDirectory(prefix=".begin-", dir=path.parent) as place:
        copy = Path(place) / path.name
        with _opened(other) as found:
            found.execute("VACUUM INTO ?", (str(copy),))
        with Ledger.open(copy) as ledger:
            replies = ledger.write(_forget_money).result()
        try:
            with copy.open("rb") as file:
                os.fsync(file.fileno())
            # a link fails where another process was first: its ledger is in use already
            os.link(copy, path)
        except FileExistsError:
            return None
        except OSError as error:
            raise _disk(error, path) from error
    return replies


def _forget_money(connection: sqlite3.Connection) -> int:
    for table in ("attempt", "owner", "lease", "spend", "run", "used", "batch"):
        connection.execute(f"DELETE FROM {table}")
    connection.execute("UPDATE response SET attempt_id = 0")
    return int(connection.execute("SELECT COUNT(*) FROM response").fetchone()[0])


def _take(ledger: Ledger, calls: Iterator[Call], batches: Sequence[str] = ()) -> Taken:
    taken = Taken()
    while chunk := list(itertools.islice(calls, CHUNK)):
        taken.add(ledger.write(_absorbing(chunk, batches)).result())
    return taken


def _absorbing(chunk: Sequence[Call], batches: Sequence[str]) -> Callable[[sqlite3.Connection], Taken]:
    return lambda connection: absorb(connection, chunk, batches)


def _batches(connection: sqlite3.Connection, rows: Sequence[tuple[object, ...]], *, settle: bool) -> None:
    """Batches are written before their attempts, and closed only after these."""
    if settle:
        closed = [(row[5], row[0]) for row in rows if row[5] not in ("building", "open")]
        connection.executemany(
            "UPDATE batch SET state = ? WHERE id = ? AND state IN ('building', 'open')", closed
        )
        told = [(row[6], row[0]) for row in rows if row[6] is not None]
        connection.executemany("UPDATE batch SET remote_id = COALESCE(remote_id, ?) WHERE id = ?", told)
    else:
        connection.executemany("INSERT OR IGNORE INTO batch VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _current(other: Path, folder: Path, stack: contextlib.ExitStack) -> Path:
    """The file to read: `other` itself, or a copy of it where its schema is older."""
    with _opened(other) as found:
        if schema_version(found, other) in (0, len(MIGRATIONS)):
            return other
        folder.mkdir(parents=True, exist_ok=True)
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix=".merge-", dir=folder))
        copy = Path(place) / other.name
        found.execute("VACUUM INTO ?", (str(copy),))
        return copy


@contextlib.contextmanager
def _opened(other: Path) -> Iterator[sqlite3.Connection]:
    """A ledger as it is, to be read only."""
    try:
        with contextlib.closing(as_it_is(other)) as found:
            yield found
    except sqlite3.Error as error:
        raise fault(error, other) from None


def _calls(path: Path, shown: str) -> Iterator[Call]:
    for number, line in enumerate(_lines(path, shown), 1):
        if not line.strip():
            continue
        try:
            yield of_line(line)
        except ValueError as error:
            raise _bad(shown, number, str(error)) from None


def _lines(path: Path, shown: str) -> Iterator[bytes]:
    number = 0
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            source: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            while line := source.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise _bad(shown, number, f"longer than {LONGEST_LINE:,} bytes")
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _bad(shown, number + 1, f"the compressed file is cut or damaged ({error})") from None
    except OSError as error:
        raise _disk(error, path) from error


def _bad(shown: str, number: int, why: str) -> BadRow:
    return BadRow(f"{shown}:{number}", why, hint="nothing was taken in; export the calls again")


def _sound(calls: Iterable[Call], path: Path) -> Iterator[Call]:
    hint = "zephyrctl ledger verify lists what is damaged; put a good copy of that ledger in its place"
    try:
        for call in calls:
            problem = call.problem()
            if problem is not None:
                raise IntegrityError(f"the ledger {path} is damaged: {problem}", hint=hint)
            yield call
    except ValueError as error:
        raise IntegrityError(f"the ledger {path} is damaged: {error}", hint=hint) from None


@contextlib.contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """One state of the ledger for several queries, whatever is written meanwhile."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _disk(error: OSError, path: Path) -> ZephyrError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return no_space(path, error.strerror)
    return EnvironmentFault(
        f"cannot use {path} ({error.strerror})", hint="check that its folder exists and can be written to"
    )
