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
from zephyrctl.ledger.search import calls_about, holds, holds_any, replies_with
from zephyrctl.quote import read_blocks
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
SELF_INSTRUCT, ULTRACHAT = "self-instruct", "ultrachat/"
"""How the sources of rows begin whose prompts a teacher made up."""
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

    Ids are prompt_id, row_id, completion_id, or the ids of a pair's two completions, `CHOSEN/REJECTED` for both.
    Raises RefNotFound, UsageError for a kind without rows, an id that is too short, or one that several rows have.
    """
    artifact = store.resolve(ref)
    if artifact.kind not in _KINDS:
        raise UsageError(f"{artifact.ref} is a {artifact.kind} artifact, which has no rows")
    where, row = _find(artifact, row_id)
    found = Why(str(artifact.ref), [])
    for cause in _back(store, artifact, where, row, found.lost):
        cause.calls = _calls(store, ledger, cause, found.lost)
        found.causes.append(cause)
    return found


def _find(artifact: Artifact, text: str) -> tuple[str, Record]:
    prefix = text.lower().strip()
    if len(prefix) < SHORTEST_ID:
        raise UsageError(f"'{text}' is too short for an id", hint=f"give {SHORTEST_ID} characters or more")
    hits = [(where, row) for where, _, row in artifact.rows() if _is_meant(row, prefix)]
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
            hint="give more of the id, the id of a completion, or of a pair both: CHOSEN/REJECTED",
        )
    return hits[0]


def _is_meant(row: Record, prefix: str) -> bool:
    """Whether an id of the row begins with `prefix`; `chosen/rejected` names a pair by its two completions."""
    chosen, slash, rejected = prefix.partition("/")
    if not slash:
        return any(i.startswith(prefix) for i in _ids(row))
    if not isinstance(row, PreferenceRow) or not (row.chosen_id and row.rejected_id):
        return False
    return row.chosen_id.startswith(chosen) and row.rejected_id.startswith(rejected)


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


def _calls(store: Store, ledger: Ledger, cause: Cause, lost: list[str]) -> list[dict[str, Any]]:
    """The calls that made a row: those that made up what it asks, asked it, and read it or its completions."""
    ref = cause.where.partition(" row ")[0]
    wanted = _wanted(cause.row)
    if wanted is None:
        return []
    try:
        step = steps_behind(store, ref).step_keys[0]
        manifest = store.resolve(ref).manifest
    except ZephyrError:
        return []
    parts = (manifest.model_extra or {}).get("parts") or []
    scope = Scope(tuple(key[:16] for key in (step, *(str(part["step_key"]) for part in parts))))
    if manifest.teachers and not holds_any(ledger, scope):
        where = " (zephyrctl ledger merge brings those of a step's parts)" if parts else ""
        what = f"the calls of {ref} are not in {ledger.path}{where}"
        lost += [what] if what not in lost else []
        return []
    found = {}
    for key, strings in calls_about(ledger, scope, wanted.asked):
        judged = [text for text in wanted.texts if holds(strings, text)]
        if wanted.asked in strings:
            found[key] = "answered it"
        elif judged:
            found[key] = f"read {len(judged)} of its texts"
        elif any(wanted.asked in read_blocks(string).values() for string in strings):
            found[key] = "read it"
    for key in replies_with(ledger, scope, wanted.asked) if wanted.made_up else ():
        found.setdefault(key, "made it up")
    told = [_told(call(ledger, key), what) for key, what in found.items()]
    return sorted(told, key=lambda one: one["what"] != "made it up")


@dataclass(frozen=True)
class _Wanted:
    """What calls are known by: the text that was asked, the texts that were made or judged, and whether what is asked
    was itself made by a call."""

    asked: str
    texts: list[str]
    made_up: bool = False


def _wanted(row: Record) -> _Wanted | None:
    if isinstance(row, FeedbackRow):
        return _Wanted(row.prompt[-1].content, [c.text for c in row.completions])
    if not isinstance(row, SftRow):
        return None
    asked = next((m.content for m in row.messages if m.role == "user"), None)
    if asked is None:
        return None
    if row.source == SELF_INSTRUCT:
        # the teacher never saw the whole: its task was made up first, its input and answer later, both in one reply
        return _Wanted(asked.partition("\n\n")[0], [], made_up=True)
    answers = [m.content for m in row.messages if m.role == "assistant"]
    return _Wanted(asked, answers, made_up=row.round > 0 or row.source.startswith(ULTRACHAT))


def _name(completion: Completion) -> str:
    return f"{completion.model} {completion.completion_id[:8]}"


def _told(found: dict[str, Any], what: str) -> dict[str, Any]:
    costs = [a["cost_uusd"] for a in found["attempts"] if a["cost_uusd"] is not None]
    return {
        "key": found["key"],
        "model": found["model"],
        "draw": found["draw"],
        "what": what,
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
            f"chosen ({_given(row.chosen_model, 'model')}, {_given(row.score_chosen, 'score')}): {_short(row.chosen)}",
            f"rejected ({_given(row.rejected_model, 'model')}, {_given(row.score_rejected, 'score')}): "
            f"{_short(row.rejected)}",
            f"judge: {row.judge or 'not given'}{', tie' if row.tie else ''}",
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
            f"row {row.row_id[:12]}, round {row.round}, by {_given(row.model, 'model')}",
            *(f"{m.role}: {_cut(m.content)}" for m in row.messages[:6]),
        ]
    if isinstance(row, PromptRow):
        return [f"prompt {row.prompt_id[:12]} ({row.source or 'no source given'}): {_short(row.prompt)}"]
    return [f"{row.suite}, {row.judge}: {row.score}"] if isinstance(row, Verdict) else []


def _given(value: str | float | None, what: str) -> str:
    if value is None:
        return f"{what} not given"
    return value if isinstance(value, str) else f"{what} {value}"


def _short(messages: list[Message]) -> str:
    return _cut(messages[-1].content)


def _cut(text: str, width: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
