"""From a row back to what it was made from: pair, completions and ratings, prompt, seed; calls and cents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.behind import steps_behind
from zephyrctl.artifacts.ref import looks_like_ref, parse_ref
from zephyrctl.artifacts.shapes import as_prompt
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import IntegrityError, RefNotFound, UsageError, ZephyrError
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.ledger.report import Scope, call
from zephyrctl.ledger.search import calls_about, holds
from zephyrctl.records import (
    Completion,
    FeedbackRow,
    Message,
    PreferenceRow,
    PromptRow,
    Record,
    SftRow,
    Verdict,
)

SHORTEST_ID = 6
_KINDS = ("prefs", "feedback", "sft", "prompts", "eval")
_LISTED = 12


@dataclass
class Cause:
    """One row on the way back: where it stands, in words, and the calls that made it."""

    where: str
    kind: str
    stage: str
    row: Record
    calls: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "where": self.where,
            "kind": self.kind,
            "stage": self.stage,
            "row": self.row.model_dump(mode="json"),
            "calls": self.calls,
        }


@dataclass
class Why:
    """The chain of a row, newest first, and what could not be followed."""

    ref: str
    causes: list[Cause]
    lost: list[str] = field(default_factory=list)

    @property
    def usd(self) -> float:
        """What the calls of the chain cost, in US dollars; a call that several rows of it needed counts once."""
        costs = {one["key"]: one["usd"] or 0.0 for cause in self.causes for one in cause.calls}
        return sum(costs.values())

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        keys = {one["key"] for cause in self.causes for one in cause.calls}
        return {
            "ref": self.ref,
            "chain": [cause.document() for cause in self.causes],
            "calls": len(keys),
            "usd": round(self.usd, 6),
            "lost": self.lost,
        }


def why(store: Store, ledger: Ledger, ref: str, row_id: str) -> Why:
    """Where the row of `ref` whose id begins with `row_id` comes from.

    Ids are prompt_id, row_id, completion_id, or the ids of a pair's two completions. Raises RefNotFound, UsageError for
    a kind without rows, an id that is too short, or one that several rows have.
    """
    artifact = store.resolve(ref)
    if artifact.kind not in _KINDS:
        raise UsageError(f"{artifact.ref} is a {artifact.kind} artifact, which has no rows")
    where, row = _find(artifact, row_id)
    found = Why(str(artifact.ref), [])
    for cause in _back(store, artifact, where, row, found.lost):
        cause.calls = _calls(store, ledger, cause)
        found.causes.append(cause)
    return found


def _find(artifact: Artifact, text: str) -> tuple[str, Record]:
    prefix = text.lower().strip()
    if len(prefix) < SHORTEST_ID:
        raise UsageError(f"'{text}' is too short for an id", hint=f"give {SHORTEST_ID} characters or more")
    hits = [(where, row) for where, _, row in artifact.rows() if any(i.startswith(prefix) for i in _ids(row))]
    if not hits:
        raise RefNotFound(
            f"no row of {artifact.ref} has an id that begins with '{text}'",
            hint=f"zephyrctl artifacts cat {artifact.ref} --rows 3 shows rows with their ids",
        )
    if len(hits) > 1:
        listed = "\n".join(
            f"  {where}  {' '.join(i[:16] for i in _ids(row)[:3])}" for where, row in hits[:_LISTED]
        )
        raise UsageError(
            f"{len(hits)} rows of {artifact.ref} have an id that begins with '{text}':\n{listed}",
            hint="give more of the id, or the id of a completion",
        )
    return hits[0]


def _ids(row: Record) -> list[str]:
    if isinstance(row, PreferenceRow):
        return [i for i in (row.prompt_id, row.chosen_id, row.rejected_id) if i]
    if isinstance(row, FeedbackRow):
        return [row.prompt_id, *(c.completion_id for c in row.completions)]
    if isinstance(row, SftRow):
        return [row.row_id]
    return [row.prompt_id] if isinstance(row, PromptRow | Verdict) else []


def _back(store: Store, artifact: Artifact, where: str, row: Record, lost: list[str]) -> Iterator[Cause]:
    """The row, then what it was made from, as far as the store holds it."""
    yield Cause(where, artifact.kind, artifact.manifest.stage, row)
    if isinstance(row, SftRow) and row.parent:
        for other, _, parent in artifact.rows():
            if isinstance(parent, SftRow) and parent.row_id == row.parent:
                yield from _back(store, artifact, other, parent, lost)
                return
    asked = _asked_of(row)
    for item in artifact.manifest.inputs:
        if item.kind not in _KINDS or not looks_like_ref(item.ref) or parse_ref(item.ref).version is None:
            continue
        try:
            source = store.resolve(item.ref)
        except (RefNotFound, IntegrityError):
            lost.append(f"{item.ref} ({item.role}) is no longer in the store")
            continue
        if source.digest != item.digest:
            lost.append(f"{item.ref} ({item.role}) has another content now")
            continue
        for other, _, earlier in source.rows():
            if _is_source(earlier, asked):
                yield from _back(store, source, other, earlier, lost)
                return


def _asked_of(row: Record) -> set[str]:
    """The ids of the prompts that a row goes back to."""
    if isinstance(row, SftRow):
        return {i for i in (row.seed_id, row.prompt_id) if i}
    return {row.prompt_id} if isinstance(row, PreferenceRow | FeedbackRow | PromptRow | Verdict) else set()


def _is_source(earlier: Record, asked: set[str]) -> bool:
    if isinstance(earlier, SftRow):
        try:
            return as_prompt(earlier).prompt_id in asked
        except ValueError:
            return False
    return isinstance(earlier, FeedbackRow | PreferenceRow | PromptRow) and earlier.prompt_id in asked


def _calls(store: Store, ledger: Ledger, cause: Cause) -> list[dict[str, Any]]:
    """The calls that made a row: those that asked its prompt, and those that judged its completions."""
    ref = cause.where.partition(" row ")[0]
    wanted = _wanted(cause.row)
    if not wanted:
        return []
    try:
        step = steps_behind(store, ref).step_keys[0]
        parts = (store.resolve(ref).manifest.model_extra or {}).get("parts") or []
    except ZephyrError:
        return []
    runs = tuple(key[:16] for key in (step, *(str(part["step_key"]) for part in parts)))
    asked, answers = wanted
    found = []
    for key, strings in calls_about(ledger, Scope(runs), asked):
        judged = [name for name, text in answers if holds(strings, text)]
        if any(string == asked for string in strings) or judged:
            found.append(_told(call(ledger, key), judged))
    return found


def _wanted(row: Record) -> tuple[str, list[tuple[str, str]]] | None:
    """The text that was asked, and the texts by name that were made or judged."""
    if isinstance(row, FeedbackRow):
        return row.prompt[-1].content, [(_name(c), c.text) for c in row.completions]
    if isinstance(row, SftRow):
        users = [m.content for m in row.messages if m.role == "user"]
        answers = [m.content for m in row.messages if m.role == "assistant"]
        return (users[0], [("answer", text) for text in answers]) if users else None
    return None


def _name(completion: Completion) -> str:
    return f"{completion.model} {completion.completion_id[:8]}"


def _told(found: dict[str, Any], judged: list[str]) -> dict[str, Any]:
    costs = [a["cost_uusd"] for a in found["attempts"] if a["cost_uusd"] is not None]
    return {
        "key": found["key"],
        "model": found["model"],
        "draw": found["draw"],
        "what": f"read {len(judged)} of its texts" if judged else "answered it",
        "attempts": len(found["attempts"]),
        "usd": sum(costs) / 1e6 if costs else None,
    }


def lines(found: Why) -> list[str]:
    """The chain as text."""
    told: list[str] = []
    for depth, cause in enumerate(found.causes):
        indent = "  " * depth
        told.append(f"{indent}{cause.where}  ({cause.kind}, made by {cause.stage})")
        told += [f"{indent}  {line}" for line in _describe(cause.row)]
        for one in cause.calls:
            cost = "price not known" if one["usd"] is None else f"${one['usd']:.6f}"
            told.append(f"{indent}  call {one['key'][:12]}… to {one['model']} {one['what']}: {cost}")
    told += [f"not followed: {text}" for text in found.lost]
    document = found.document()
    told.append(f"{document['calls']} calls, ${found.usd:.6f} in all")
    return told


def _describe(row: Record) -> list[str]:
    if isinstance(row, PreferenceRow):
        return [
            f"prompt {row.prompt_id[:12]}: {_short(row.prompt)}",
            f"chosen ({row.chosen_model}, score {row.score_chosen}): {_short(row.chosen)}",
            f"rejected ({row.rejected_model}, score {row.score_rejected}): {_short(row.rejected)}",
            f"judge: {row.judge}{', tie' if row.tie else ''}",
        ]
    if isinstance(row, FeedbackRow):
        told = [f"prompt {row.prompt_id[:12]}: {_short(row.prompt)}", f"judge: {row.judge}"]
        for completion in row.completions:
            ratings = ", ".join(
                f"{r.aspect} {r.value if r.value is not None else r.reason}" for r in completion.ratings
            )
            told.append(
                f"{_name(completion)}: overall {completion.overall}; {ratings}: {_cut(completion.text)}"
            )
        return told
    if isinstance(row, SftRow):
        return [
            f"row {row.row_id[:12]}, round {row.round}, by {row.model}",
            *(f"{m.role}: {_cut(m.content)}" for m in row.messages[:6]),
        ]
    if isinstance(row, PromptRow):
        return [f"prompt {row.prompt_id[:12]} ({row.source or 'no source given'}): {_short(row.prompt)}"]
    return [f"{row.suite}, {row.judge}: {row.score}"] if isinstance(row, Verdict) else []


def _short(messages: list[Message]) -> str:
    return _cut(messages[-1].content)


def _cut(text: str, width: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
