"""What tells two versions apart: settings, counts, rows by their ids, distributions, and pairs that flipped."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.config import canonical
from zephyrctl.errors import UsageError
from zephyrctl.events import Table
from zephyrctl.records import FeedbackRow, PreferenceRow, PromptRow, Record, SftRow, Verdict

SHOWN = 10
"""Ids listed of each kind of difference."""


@dataclass
class RowsDiff:
    """Rows by id: how many are in one version only, changed, or equal; the first ids of each.

    `flipped`: prompts whose preferred answer is another one now, of those that both versions decide.
    """

    added: int = 0
    removed: int = 0
    changed: int = 0
    same: int = 0
    decided: int = 0
    flipped: int = 0
    moved: int = 0
    """Rows that are in another split now."""
    columns: Counter[str] = field(default_factory=Counter)
    """How many of the changed rows differ in each column."""
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, what: str, identity: str) -> None:
        """Counts one difference, and keeps its id among the first."""
        setattr(self, what, getattr(self, what) + 1)
        listed = self.examples.setdefault(what, [])
        if len(listed) < SHOWN:
            listed.append(identity)


@dataclass
class Diff:
    """Everything that was compared, as a document and as tables."""

    document: dict[str, Any]
    tables: list[Table]


@dataclass(frozen=True)
class _Known:
    """What is kept of a row of the first version."""

    split: str
    whole: bytes
    columns: Mapping[str, bytes]
    winner: str | None
    texts: frozenset[bytes]
    """The two sides of a pair, in no order; empty for other rows."""


def diff(one: Artifact, two: Artifact) -> Diff:
    """What changed from `one` to `two`. Raises UsageError for artifacts of different kinds."""
    if one.kind != two.kind:
        raise UsageError(
            f"{one.ref} is a {one.kind} artifact, {two.ref} a {two.kind}: nothing in common to compare",
            hint="give two versions of one kind",
        )
    first, second = one.manifest, two.manifest
    document: dict[str, Any] = {
        "from": str(one.ref),
        "to": str(two.ref),
        "kind": one.kind,
        "same_content": one.digest == two.digest,
        "schema": _pair(first.kind_version, second.kind_version),
        "settings": _mapping(_settings(one), _settings(two)),
        "inputs": _mapping(_inputs(one), _inputs(two)),
        "counts": _mapping(_flat(first.counts), _flat(second.counts)),
        "scores": _mapping(first.headline, second.headline),
    }
    tables = [
        _table("settings", document["settings"]),
        _table("made from", document["inputs"]),
        _table("counts", document["counts"]),
        _table("scores", document["scores"]),
    ]
    if one.kind in _IDENTITY and one.digest != two.digest:
        rows, numbers = _rows(one, two)
        document["rows"] = {
            **{name: getattr(rows, name) for name in ("added", "removed", "changed", "same", "moved")},
            "changed_columns": dict(rows.columns.most_common()),
            "examples": rows.examples,
            **({"decided": rows.decided, "flipped": rows.flipped} if one.kind in _WINNER else {}),
        }
        document["distributions"] = numbers
        tables += [_rows_table(rows, one.kind), _table("distributions", numbers)]
    return Diff(document, [table for table in tables if table.rows])


def _settings(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {**_flat(manifest.config), "edition": manifest.edition, "stage_version": manifest.stage_version}


def _inputs(artifact: Artifact) -> dict[str, str]:
    return {f"{i.role} {n}": f"{i.ref} {i.digest[:19]}…" for n, i in enumerate(artifact.manifest.inputs, 1)}


def _rows(one: Artifact, two: Artifact) -> tuple[RowsDiff, dict[str, Any]]:
    """Compares row by row; of the first version's rows only hashes are kept.

    Of rows of one id (all pairs of a prompt) equal ones are compared with each other, then those of the same two texts
    in whichever order; what is left on both sides is compared in stored order.
    """
    identity, winner = _IDENTITY[one.kind], _WINNER.get(one.kind)
    spread = _Spread(), _Spread()
    known: dict[str, list[_Known]] = {}
    for _, split, row in one.rows():
        spread[0].add(split, row)
        known.setdefault(identity(row), []).append(_known(split, row, winner))
    found, waiting = RowsDiff(), list[tuple[str, _Known]]()
    for _, split, row in two.rows():
        spread[1].add(split, row)
        name, now = identity(row), _known(split, row, winner)
        if not _met(found, known, name, now, "whole"):
            waiting.append((name, now))
    apart = [(name, now) for name, now in waiting if not _met(found, known, name, now, "texts")]
    for name, now in apart:
        if known.get(name):
            _compare(found, name, known[name].pop(0), now)
        else:
            found.note("added", name)
    for name, left in known.items():
        for _ in left:
            found.note("removed", name)
    return found, _mapping(spread[0].summary(), spread[1].summary())


def _met(
    found: RowsDiff, known: dict[str, list[_Known]], name: str, now: _Known, by: Literal["whole", "texts"]
) -> bool:
    """Whether a row of this id is there that is equal in `by`; it is compared, and taken out of `known`."""
    for place, before in enumerate(known.get(name, ())):
        if getattr(before, by) == getattr(now, by):
            _compare(found, name, known[name].pop(place), now)
            return True
    return False


def _compare(found: RowsDiff, name: str, before: _Known, now: _Known) -> None:
    if before.split != now.split:
        found.note("moved", name)
    if before.winner is not None and now.winner is not None:
        found.decided += 1
        if before.winner != now.winner:
            found.note("flipped", name)
    if before.whole == now.whole:
        found.same += 1
        return
    found.note("changed", name)
    found.columns.update(
        column for column, value in now.columns.items() if before.columns.get(column) != value
    )


def _known(split: str, row: Record, winner: Callable[[Any], str | None] | None) -> _Known:
    body = row.model_dump(mode="json")
    columns = {name: _hash(value) for name, value in body.items()}
    whole = hashlib.sha256(b"".join(columns[name] for name in sorted(columns))).digest()[:12]
    texts = frozenset(columns[name] for name in _SIDES if name in columns)
    return _Known(split, whole, columns, winner(row) if winner is not None else None, texts)


def _hash(value: Any) -> bytes:
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).digest()[:8]


class _Spread:
    """What is told of a version's rows as a whole: splits, models, mean lengths and scores."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()

    def add(self, split: str, row: Record) -> None:
        self._counts[f"rows in {split}"] += 1
        for name, value in _labels(row):
            self._counts[f"{name} {value}"] += 1
        for name, number in _numbers(row):
            self._sums[name] += number  # type: ignore[assignment]
            self._seen[name] += 1

    def summary(self) -> dict[str, Any]:
        means = {f"mean {name}": round(self._sums[name] / n, 4) for name, n in self._seen.items()}
        return dict(sorted(self._counts.items())) | dict(sorted(means.items()))


def _labels(row: Record) -> list[tuple[str, str]]:
    if isinstance(row, PreferenceRow):
        return [("chosen", str(row.chosen_model)), ("rejected", str(row.rejected_model))]
    if isinstance(row, FeedbackRow):
        return [("completions of", c.model) for c in row.completions]
    if isinstance(row, SftRow):
        return [("model", str(row.model)), ("round", str(row.round))]
    return []


def _numbers(row: Record) -> list[tuple[str, float]]:
    if isinstance(row, PreferenceRow):
        found: list[tuple[str, float]] = [
            ("characters of chosen", sum(len(m.content) for m in row.chosen)),
            ("characters of rejected", sum(len(m.content) for m in row.rejected)),
        ]
        scores = (("score of chosen", row.score_chosen), ("score of rejected", row.score_rejected))
        return found + [(name, value) for name, value in scores if value is not None]
    if isinstance(row, FeedbackRow):
        return [
            *(("characters of completions", float(len(c.text))) for c in row.completions),
            *(("overall", c.overall) for c in row.completions if c.overall is not None),
            *((r.aspect, r.value) for c in row.completions for r in c.ratings if r.value is not None),
        ]
    if isinstance(row, SftRow):
        return [
            ("messages", len(row.messages)),
            ("characters of answers", sum(len(m.content) for m in row.messages if m.role == "assistant")),
        ]
    if isinstance(row, PromptRow):
        return [("characters of prompts", sum(len(m.content) for m in row.prompt))]
    return []


def _best(row: FeedbackRow) -> str | None:
    """The completion with the highest overall score, where one alone has it."""
    scored = [(c.overall, c.completion_id) for c in row.completions if c.overall is not None]
    top = max((score for score, _ in scored), default=None)
    best = [identity for score, identity in scored if score == top]
    return best[0] if len(best) == 1 else None


_IDENTITY: dict[str, Callable[[Any], str]] = {
    "prompts": lambda row: row.prompt_id,
    "sft": lambda row: row.row_id,
    "feedback": lambda row: row.prompt_id,
    "prefs": lambda row: row.prompt_id,
    "eval": lambda row: _verdict_id(row),
}
_SIDES = ("chosen", "rejected")
_WINNER: dict[str, Callable[[Any], str | None]] = {
    "prefs": lambda row: _hash([m.model_dump() for m in row.chosen]).hex(),
    "feedback": _best,
}


def _verdict_id(row: Verdict) -> str:
    return "/".join([row.suite, row.decoding, row.prompt_id, str(row.turn), row.judge, row.order])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _mapping(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    names = [*one, *(name for name in two if name not in one)]
    return {n: _pair(one.get(n), two.get(n)) for n in names if one.get(n) != two.get(n)}


def _pair(one: Any, two: Any) -> dict[str, Any]:
    return {"from": one, "to": two}


def _table(title: str, pairs: Mapping[str, Any]) -> Table:
    rows = tuple((name, _cell(pair["from"]), _cell(pair["to"])) for name, pair in pairs.items())
    return Table(title, ("what", "from", "to"), rows)


def _rows_table(rows: RowsDiff, kind: str) -> Table:
    lines = [
        (name, f"{getattr(rows, name):,}", ", ".join(i[:12] for i in rows.examples.get(name, [])[:3]))
        for name in ("added", "removed", "changed", "same", "moved")
    ]
    lines += [(f"changed: {column}", f"{n:,}", "") for column, n in rows.columns.most_common()]
    if kind in _WINNER:
        share = f"{rows.flipped:,} of {rows.decided:,}"
        lines.append(("flipped", share, ", ".join(i[:12] for i in rows.examples.get("flipped", [])[:3])))
    return Table("rows", ("what", "rows", "such as"), tuple(lines))


def _cell(value: Any) -> str:
    text = "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
