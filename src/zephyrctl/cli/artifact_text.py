"""How `zephyrctl artifacts` looks in a terminal (pure, but for `write_lines`)."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zephyrctl.cli.console import plain_table

if TYPE_CHECKING:
    from zephyrctl.artifacts.artifact import Artifact

_COLUMNS = ("ref", "kind", "rows", "scores", "world", "created", "by", "settings", "tags")


def versions_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """The listing as an aligned table; columns that are empty throughout are left out."""
    rows = [_version_row(entry) for entry in entries]
    if not rows:
        return ""
    used = [n for n in range(len(_COLUMNS)) if any(row[n] for row in rows)]
    cells = tuple(tuple(row[n] or "-" for n in used) for row in rows)
    return plain_table(tuple(_COLUMNS[n] for n in used), cells)


def manifest_text(artifact: Artifact) -> str:
    """One version in full, as `name: value` lines under headings."""
    manifest = artifact.manifest
    made = (
        f"{manifest.stage}"
        + (f", edition {manifest.edition}" if manifest.edition else "")
        + f", seed {manifest.seed}"
    )
    lines = [
        f"{artifact.ref}",
        f"  kind            {manifest.kind} (version {manifest.kind_version}), {manifest.world}",
        f"  folder          {artifact.path}",
        f"  content digest  {manifest.content_digest}",
        f"  made by         {made}, zephyrctl {manifest.code.get('version', '?')}",
        f"  created         {manifest.provenance.get('created', '?')}",
        f"  step key        {manifest.step_key}",
    ]
    if manifest.note:
        lines.append(f"  note            {manifest.note}")
    sections = (
        ("counts", _pairs(manifest.counts)),
        ("scores", _pairs(manifest.headline)),
        ("made from", [(i.role, f"{i.ref} ({i.kind}, {i.digest})") for i in manifest.inputs]),
        ("side outputs", list(manifest.sides.items())),
        ("teachers", [(str(n), _flat_text(t)) for n, t in enumerate(manifest.teachers, start=1)]),
        ("settings", _pairs(manifest.config)),
        ("files", [(f.path, _file_text(f.size, f.rows)) for f in manifest.files]),
    )
    for title, pairs in sections:
        if pairs:
            width = max(len(key) for key, _ in pairs)
            lines += [title, *(f"  {key.ljust(width)}  {value}" for key, value in pairs)]
    return "\n".join(lines)


def verdicts_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """One line a version, and one for each problem."""
    lines = []
    for entry in entries:
        lines.append(f"{entry['ref']}  {'ok' if entry['ok'] else 'DAMAGED'}")
        lines += [f"  {problem}" for problem in entry["problems"]]
    return "\n".join(lines)


def write_lines(rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as JSON lines on stdout.

    What could drive a terminal is escaped, so that nothing of a row is lost.
    """
    for row in rows:
        sys.stdout.write(json_line(row) + "\n")
    sys.stdout.flush()


def json_line(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON, with control, bidirectional and private characters as escapes."""
    text = json.dumps(row, ensure_ascii=False)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} else _escaped(c)
        for c in text
    )


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def _version_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if "damaged" in entry:
        return (str(entry["ref"]), "DAMAGED", "", str(entry["damaged"]), "", "", "", "", "")
    rows = entry["rows"]
    return (
        str(entry["ref"]),
        str(entry["kind"]) + (" (side)" if entry["side"] else ""),
        f"{rows:,}" if rows is not None else "",
        _flat_text(entry["headline"]),
        str(entry["world"]),
        str(entry["created"] or "").replace("T", " ").removesuffix("Z"),
        ", ".join(entry["teachers"]),
        _flat_text(entry["knobs"]),
        ", ".join(entry["tags"]),
    )


def _pairs(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _pairs(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", _value(value)))
    return found


def _flat_text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in _pairs(values) if value not in ("", "-"))


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split())


def _file_text(size: int, rows: int | None) -> str:
    return f"{size:,} bytes" + (f", {rows:,} rows" if rows is not None else "")
