"""Rows as one HTML page: nothing is loaded from anywhere, no script runs, and text of models stays text."""

from __future__ import annotations

import base64
import hashlib
import heapq
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.errors import UsageError
from zephyrctl.records import (
    ROW_TYPES,
    Completion,
    FeedbackRow,
    Message,
    PreferenceRow,
    PromptRow,
    Rating,
    Record,
    SftRow,
    Verdict,
    row_seed,
)


@dataclass(frozen=True)
class Column:
    """One of the texts that stand side by side; `mark` is good, bad or empty."""

    title: str
    text: str
    mark: str = ""
    facts: list[str] = field(default_factory=list)
    details: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Shown:
    """A row as the page shows it: facts, what was said before, texts side by side."""

    where: str
    facts: list[str]
    before: list[Message]
    columns: list[Column] = field(default_factory=list)


def page(artifact: Artifact, rows: int, *, split: str | None = None, seed: int = 42) -> str:
    """The page of up to `rows` rows, drawn by hash so that they stand for the whole, in stored order.

    Raises UsageError for a kind without rows or a split that is not there, IntegrityError.
    """
    if artifact.kind not in ROW_TYPES:
        raise UsageError(
            f"{artifact.ref} is a {artifact.kind} artifact, which has no rows to look at",
            hint="kinds with rows: " + ", ".join(ROW_TYPES),
        )
    if split is not None and split not in artifact.splits():
        known = ", ".join(artifact.splits()) or "none"
        raise UsageError(f"{artifact.ref} has no split '{split}'", hint=f"its splits: {known}")
    every = (
        (row_seed(seed, artifact.digest, n), n, at, row)
        for n, (at, _, row) in enumerate(artifact.rows(split))
    )
    drawn = heapq.nsmallest(rows, every)
    shown = [_shown(where, row) for _, _, where, row in sorted(drawn, key=lambda found: found[1])]
    about = (
        f"{artifact.kind}, {len(shown)} of {artifact.count(split):,} rows, made by {artifact.manifest.stage}"
    )
    return _render(
        title=str(artifact.ref), about=about, rows=shown, sandbox=artifact.manifest.world == "sandbox"
    )


def _render(**values: Any) -> str:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from markupsafe import Markup

    folder = files("zephyrctl.report")
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=True, trim_blocks=True)
    template = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(style=Markup(style), style_hash=digest, **values)


def _shown(where: str, row: Record) -> Shown:
    if isinstance(row, PreferenceRow):
        return _pair(where, row)
    if isinstance(row, FeedbackRow):
        best = max((c.overall for c in row.completions if c.overall is not None), default=None)
        columns = [_completion(c, best) for c in row.completions]
        return Shown(
            where, [f"judge: {row.judge}", *_source(row.source), _id(row.prompt_id)], row.prompt, columns
        )
    if isinstance(row, SftRow):
        facts = [f"round {row.round}", *([f"model: {row.model}"] if row.model else []), *_source(row.source)]
        return Shown(where, [*facts, _id(row.row_id)], row.messages)
    if isinstance(row, PromptRow):
        later = [Message(role="user", content=text) for text in row.follow_ups]
        return Shown(where, [*_source(row.source), _id(row.prompt_id)], [*row.prompt, *later])
    assert isinstance(row, Verdict)
    return _verdict(where, row)


def _pair(where: str, row: PreferenceRow) -> Shown:
    facts = [
        *([f"judge: {row.judge}"] if row.judge else []),
        *(["tie"] if row.tie else []),
        *_source(row.source),
    ]
    columns = [
        Column(
            f"chosen: {row.chosen_model or 'model not given'}",
            _said(row.chosen),
            "good",
            _score(row.score_chosen),
        ),
        Column(
            f"rejected: {row.rejected_model or 'model not given'}",
            _said(row.rejected),
            "bad",
            _score(row.score_rejected),
        ),
    ]
    return Shown(where, [*facts, _id(row.prompt_id)], row.prompt, columns)


def _verdict(where: str, row: Verdict) -> Shown:
    facts = [row.suite, row.decoding, row.family, f"judge: {row.judge}", *([row.order] if row.order else [])]
    asked = [Message(role="user", content=row.question)]
    details = [(name, text) for name, text in (("critique", row.critique), ("reason", row.reason)) if text]
    columns = [Column("answer", row.answer, "", _score(row.score), details)]
    if row.reference is not None:
        columns.append(Column("reference", row.reference))
    return Shown(where, facts, asked, columns)


def _completion(completion: Completion, best: float | None) -> Column:
    facts = [
        *(["overall not scored"] if completion.overall is None else [f"overall {completion.overall:g}"]),
        *(f"{r.aspect} {_value(r)}" for r in completion.ratings),
    ]
    details = [(f"{r.aspect} {_value(r)}{_place(r)}", r.rationale or "") for r in completion.ratings]
    if completion.critique:
        details.append(("critique", completion.critique))
    if completion.principle:
        facts.append(f"principle: {completion.principle}")
    details += [
        (f"second opinion of {o.judge} ({o.why})", _opinion(o.ratings, o.overall))
        for o in completion.opinions
    ]
    mark = "good" if best is not None and completion.overall == best else ""
    return Column(completion.model, completion.text, mark, facts, details)


def _opinion(ratings: list[Rating], overall: float | None) -> str:
    told = [f"{r.aspect} {_value(r)}" for r in ratings]
    return ", ".join([*told, *([f"overall {overall:g}"] if overall is not None else [])])


def _value(rating: Rating) -> str:
    return f"{rating.value:g}" if rating.value is not None else (rating.reason or "missing")


def _place(rating: Rating) -> str:
    return f" (shown as text {rating.position})" if rating.position is not None else ""


def _said(messages: list[Message]) -> str:
    return (
        messages[0].content if len(messages) == 1 else "\n\n".join(f"{m.role}: {m.content}" for m in messages)
    )


def _score(score: float | None) -> list[str]:
    return [f"score {score:g}"] if score is not None else ["no score"]


def _source(source: str) -> list[str]:
    return [f"source: {source}"] if source else []


def _id(identity: str) -> str:
    return f"id {identity[:12]}"
