"""Outside files as JSON objects, each with its place (`file:line`); a row that cannot be read comes as a
BadRow.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from zephyrctl.artifacts import shapes, table
from zephyrctl.errors import BadRow, IntegrityError, UsageError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".txt", ".txt.gz")
_MAX_LINE = 64 << 20
_MAX_DOCUMENT = 1 << 30

Read = tuple[str, dict[str, Any] | BadRow]


def is_data_file(path: Path) -> bool:
    """Whether a file's name has an ending that `read_file` knows."""
    return path.name.endswith(SUFFIXES)


def read_file(path: Path, shown: str) -> Iterator[Read]:
    """`(where, row)` for every row of a data file; `shown` is the file's name in messages.

    A row that is no JSON object is given as the BadRow it would raise. Raises IntegrityError when the file as
    a whole cannot be read (a cut gzip stream, a damaged Parquet file), UsageError for an unknown ending.
    """
    if not is_data_file(path):
        raise UsageError(
            f"{shown}: not a kind of file that can be read", hint="known: " + ", ".join(SUFFIXES)
        )
    if path.name.endswith(".parquet"):
        return _parquet(path, shown)
    if path.name.endswith((".txt", ".txt.gz")):
        return _lines_of_text(path, shown)
    if path.name.endswith((".json", ".json.gz")) and _first_byte(path, shown) == b"[":
        return _array(path, shown)
    return _jsonl(path, shown)


def _parquet(path: Path, shown: str) -> Iterator[Read]:
    for number, row in enumerate(table.read_rows(path), start=1):
        where = f"{shown}:{number}"
        why = shapes.unstorable(row)
        yield where, BadRow(where, why) if why else row


def _lines_of_text(path: Path, shown: str) -> Iterator[Read]:
    for where, line in _lines(path, shown):
        if isinstance(line, BadRow):
            yield where, line
        elif "\0" in line:
            yield where, BadRow(where, "text holds a NUL character")
        else:
            yield where, {"text": line}


def _jsonl(path: Path, shown: str) -> Iterator[Read]:
    for where, line in _lines(path, shown):
        yield where, line if isinstance(line, BadRow) else _object(line, where)


def _object(line: str, where: str) -> dict[str, Any] | BadRow:
    try:
        value = json.loads(line, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        return BadRow(where, f"not JSON: {error.msg} at character {error.pos + 1}")
    except ValueError as error:
        return BadRow(where, f"not JSON: {error}")
    except RecursionError:
        return BadRow(where, "not usable: brackets nested too deep")
    if not isinstance(value, dict):
        return BadRow(where, f"expected a JSON object, found {type(value).__name__}")
    # escapes are the only way for these characters to get through a line of valid UTF-8
    why = shapes.unstorable(value) if "\\u0000" in line or "\\ud" in line or "\\uD" in line else None
    return BadRow(where, why) if why else value


def _array(path: Path, shown: str) -> Iterator[Read]:
    with _binary(path, shown) as file, _whole(shown):
        raw = file.read(_MAX_DOCUMENT + 1)
    if len(raw) > _MAX_DOCUMENT:
        raise IntegrityError(
            f"{shown}: a JSON document of more than 1 GiB", hint="write it as JSONL, one row a line"
        )
    try:
        rows = json.loads(raw.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{shown}: not a JSON document: {error}") from None
    for number, row in enumerate(rows, start=1):
        where = f"{shown}:{number}"
        why = shapes.unstorable(row) if isinstance(row, dict) else "expected a JSON object"
        yield where, BadRow(where, why) if why else row


def _lines(path: Path, shown: str) -> Iterator[tuple[str, str | BadRow]]:
    """The lines of a text file that are not blank; a byte order mark at the start is taken off."""
    with _binary(path, shown) as file:
        number = 0
        while True:
            number += 1
            where = f"{shown}:{number}"
            with _whole(where):
                raw = file.readline(_MAX_LINE + 1)
            if not raw:
                return
            if len(raw) > _MAX_LINE:
                with _whole(where):
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(_MAX_LINE)
                yield where, BadRow(where, f"a line of more than {_MAX_LINE >> 20} MiB")
                continue
            if number == 1:
                if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise IntegrityError(
                        f"{shown}: UTF-16 text; expected UTF-8", hint="save the file as UTF-8"
                    )
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                yield where, raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield where, BadRow(where, f"not UTF-8 at byte {error.start + 1} of the line")


@contextlib.contextmanager
def _binary(path: Path, shown: str) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as raw:
            yield io.BufferedReader(gzip.GzipFile(fileobj=raw)) if path.name.endswith(".gz") else raw
    except PermissionError as error:
        raise IntegrityError(f"{shown}: cannot be read ({error.strerror})") from error


@contextlib.contextmanager
def _whole(where: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise IntegrityError(f"{where}: the gzip stream is cut or damaged ({error})") from error


def _first_byte(path: Path, shown: str) -> bytes:
    with _binary(path, shown) as file, _whole(shown):
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON value")
