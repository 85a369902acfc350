"""Evaluation suites as they lie on a disk, read only: what each of their items asks.

The format is told from the rows; the name from the format, or else from the file and its folders. Known formats:
MT-Bench, AlpacaEval, ARC, HellaSwag, MMLU (also the original CSV files), TruthfulQA (all of its forms), and any
JSONL, JSON, Parquet or CSV file with a column `prompt`, `question`, `instruction`, `text`, `turns` or `messages`.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyrctl.artifacts import readers
from zephyrctl.artifacts.digests import hash_file
from zephyrctl.benchmarks.suite_rows import SuiteItem, item_of, shape_of
from zephyrctl.config import digest_of
from zephyrctl.errors import BadRow, IntegrityError, RefNotFound, UsageError, ZephyrError
from zephyrctl.events import Emit, Note, Warning_, silent

__all__ = ["Suite", "SuiteItem", "load_suites"]

_CSV = (".csv", ".csv.gz")
# a text file in a folder is a licence or a prompt template more often than a suite; named itself, it is read
_SCANNED = (*(ending for ending in readers.SUFFIXES if not ending.startswith(".txt")), *_CSV)
_LISTED = 5
_TRIED = 20
"""After so many rows without a usable one a file is given up."""
# names that say what a file is for, not which suite it belongs to
_PLAIN = re.compile(
    r"(test|val|validation|dev|train|auxiliary_train|data|main|default|all|questions?|prompts?|eval|samples?"
    r"|generation|multiple_choice|suites?)?([-_.]\d.*)?",
    re.IGNORECASE,
)
_TRAINING = re.compile(r"(auxiliary[-_])?train([-_.].*)?|.*[-_.]train", re.IGNORECASE)
_HELD_OUT = re.compile(r"(.*[-_.])?(test|val|validation|dev)([-_.].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Suite:
    """A suite: its name, the first of its files, the digest of all of them, and its items in stored order."""

    name: str
    path: Path
    digest: str
    items: list[SuiteItem]


@dataclass(frozen=True)
class _Part:
    name: str
    path: Path
    sha256: str
    items: list[SuiteItem]
    bad: list[BadRow]


def load_suites(paths: Sequence[Path], emit: Emit = silent) -> list[Suite]:
    """The suites in files and folders, sorted by name; files of one name are one suite.

    Of a folder every data file below it is tried; those that cannot be read are named in a warning, those of a
    training split that lie beside a test split are left out, with a note. Raises RefNotFound for a path that is not
    there, UsageError or IntegrityError for a file that is named itself and is no suite.
    """
    parts: dict[Path, _Part] = {}
    unread: list[ZephyrError] = []
    training: list[Path] = []
    for path in paths:
        if not path.exists():
            raise RefNotFound(
                f"no such file or folder: {path}", hint="a folder of evaluation suites, or the file of one"
            )
        if path.is_file():
            parts[path.resolve()] = _read(path)
            continue
        found, left_out = _scan(path)
        training += left_out
        for file in found:
            try:
                parts.setdefault(file.resolve(), _read(file))
            except ZephyrError as error:
                unread.append(error)
    if training:
        shown = _some([str(path) for path in training])
        emit(Note(f"training splits of evaluation suites are not compared with: {shown}"))
    if unread:
        lines = _some([error.message for error in unread], "\n  ")
        what = "1 file is" if len(unread) == 1 else f"{len(unread):,} files are"
        emit(Warning_(f"{what} not compared with, since no evaluation suite can be read there:\n  {lines}"))
    for part in parts.values():
        if part.bad:
            what = "1 row" if len(part.bad) == 1 else f"{len(part.bad):,} rows"
            first = part.bad[0].message
            emit(Warning_(f"{what} of the suite '{part.name}' cannot be read; the first: {first}"))
    return _together(list(parts.values()))


def _together(parts: Sequence[_Part]) -> list[Suite]:
    suites = []
    for name in sorted({part.name for part in parts}):
        own = [part for part in parts if part.name == name]
        hashes = sorted([part.path.name, part.sha256] for part in own)
        digest = f"sha256:{own[0].sha256}" if len(own) == 1 else digest_of(hashes)
        suites.append(Suite(name, own[0].path, digest, [item for part in own for item in part.items]))
    return suites


def _scan(folder: Path) -> tuple[list[Path], list[Path]]:
    """The data files below a folder, and those left out because they are training splits."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.name.endswith(_SCANNED)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    # what is held out lies beside the training split, or in a folder beside its folder (the original MMLU)
    held_out = {p.parent for p in found if _HELD_OUT.fullmatch(_stem(p))}
    held_out |= {p.parent.parent for p in found if _HELD_OUT.fullmatch(p.parent.name)}
    taken: list[Path] = []
    left_out: list[Path] = []
    for path in found:
        beside = _TRAINING.fullmatch(_stem(path)) and path.parent in held_out
        apart = _TRAINING.fullmatch(path.parent.name) and path.parent.parent in held_out
        (left_out if beside or apart else taken).append(path)
    return taken, left_out


def _read(path: Path) -> _Part:
    shape = ""
    items: list[SuiteItem] = []
    bad: list[BadRow] = []
    label = _label(path)
    try:
        sha256 = hash_file(path)
        for number, (where, row) in enumerate(_rows(path), start=1):
            if isinstance(row, BadRow):
                bad.append(row)
                continue
            try:
                shape = shape or shape_of(row)
                items.append(item_of(shape, row, f"{label}:{number}"))
            except (ValueError, KeyError) as error:
                bad.append(BadRow(where, str(error)))
            if not items and len(bad) == _TRIED:
                break
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror})") from error
    if not items:
        why = bad[0].message if bad else f"{path}: no rows"
        raise UsageError(
            f"{why}; this is no evaluation suite", hint="zephyrctl reads suites from JSONL, Parquet and CSV"
        )
    return _Part(_name(shape, path), path, sha256, items, bad)


def _rows(path: Path) -> Iterator[readers.Read]:
    if path.name.endswith(_CSV):
        return _csv(path)
    return readers.read_file(path, str(path))


def _csv(path: Path) -> Iterator[readers.Read]:
    """The rows of a CSV file with a header, or of an original MMLU file, which has none."""
    with path.open("rb") as raw:
        binary = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
        lines = csv.reader(io.TextIOWrapper(binary, encoding="utf-8-sig", newline=""), strict=True)
        header: list[str] = []
        line = 1
        try:
            for cells in lines:
                where, line = f"{path}:{line}", lines.line_num + 1
                if not header and _is_mmlu(cells):
                    yield where, {"question": cells[0], "choices": cells[1:5], "answer": cells[5]}
                elif not header:
                    header = [cell.strip().lower() for cell in cells]
                elif len(cells) == len(header):
                    yield where, dict(zip(header, cells, strict=True))
                elif cells:
                    yield (
                        where,
                        BadRow(where, f"{len(cells)} cells in a row under {len(header)} column names"),
                    )
        except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise IntegrityError(f"{path}:{line}: not a CSV file in UTF-8: {error}") from None


def _is_mmlu(cells: Sequence[str]) -> bool:
    return len(cells) == 6 and cells[5].strip() in ("A", "B", "C", "D")


def _stem(path: Path) -> str:
    ending = next((e for e in (*readers.SUFFIXES, *_CSV) if path.name.endswith(e)), "")
    return path.name.removesuffix(ending)


def _label(path: Path) -> str:
    """What the items of a file without ids of their own are called after: `test` alone would fit many files."""
    stem = _stem(path)
    return f"{path.absolute().parent.name}/{stem}" if _PLAIN.fullmatch(stem) else stem


def _name(shape: str, path: Path) -> str:
    if shape == "arc":
        below = "/".join(path.absolute().parts[-4:]).lower()
        return next((f"arc-{part}" for part in ("easy", "challenge") if part in below), "arc")
    if shape != "other":
        return shape
    for name in (_stem(path), *reversed(path.absolute().parent.parts)):
        if name and _PLAIN.fullmatch(name) is None:
            return re.sub(r"[^\w.-]+", "-", name).strip("-") or "suite"
    return "suite"


def _some(texts: Sequence[Any], between: str = ", ") -> str:
    more = f"{between}… and {len(texts) - _LISTED:,} more" if len(texts) > _LISTED else ""
    return between.join(map(str, texts[:_LISTED])) + more
