"""Plain data of one kind, several versions made into one. For the parts of a step that was cut up, see `parts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.config import StageConfig, canonical, digest_of
from zephyrctl.errors import UsageError
from zephyrctl.records import FeedbackRow, PreferenceRow, PromptRow, Record, SftRow


class JoinConfig(StageConfig):
    """Settings of `artifacts merge` for plain data: only the order of what is given matters."""

    stage: ClassVar[str] = "artifacts merge"


_IDENTITY: dict[str, Callable[[Any], str]] = {
    "prompts": lambda row: row.prompt_id,
    "sft": lambda row: row.seed_id or row.prompt_id,
    "feedback": lambda row: row.prompt_id,
    "prefs": lambda row: row.prompt_id,
}


def join(work: Work, artifacts: Sequence[Artifact], *, out: str, note: str | None = None) -> StepResult:
    """One version with the rows of several of one kind, in the order given.

    A row that is there already is dropped and counted. A prompt keeps the split in which it was met first, so that
    none is in both. Raises UsageError for fewer than two, for kinds or worlds that differ, and for kinds without rows.
    """
    kind, world = _common(artifacts)
    inputs = [InputRef(role="part", ref=str(a.ref), digest=a.digest, kind=a.kind) for a in artifacts]
    step = Step(work, JoinConfig(out=out, note=note), name=out, kind=kind, inputs=inputs, world=world)
    done = step.done()
    if done is not None:
        return done
    with step.open() as staging:
        _join_rows(staging, artifacts, _IDENTITY[kind])
        return step.result(staging.commit())


def _common(artifacts: Sequence[Artifact]) -> tuple[str, Any]:
    refs = [str(a.ref) for a in artifacts]
    if len(set(refs)) < 2:
        raise UsageError(
            "one version leaves nothing to merge", hint="give two or more: artifacts merge a@v1 b@v2"
        )
    if len(set(refs)) < len(refs):
        raise UsageError(f"a version is given twice: {', '.join(refs)}", hint="give each version once")
    first = artifacts[0]
    for other in artifacts[1:]:
        for what in ("kind", "world"):
            if getattr(first, what) != getattr(other, what):
                raise UsageError(
                    f"{first.ref} is {getattr(first, what)}, {other.ref} is {getattr(other, what)}: "
                    f"one artifact holds rows of one {what}"
                )
    if first.kind not in _IDENTITY:
        raise UsageError(
            f"artifacts of kind '{first.kind}' cannot be merged", hint="kinds: " + ", ".join(_IDENTITY)
        )
    return first.kind, first.manifest.world


def _join_rows(staging: Staging, artifacts: Sequence[Artifact], identity: Callable[[Any], str]) -> None:
    seen: set[str] = set()
    splits: dict[str, str] = {}
    duplicates = moved = 0
    for artifact in artifacts:
        for where, split, row in artifact.rows():
            content = digest_of(row.model_dump(mode="json"))
            if content in seen:
                duplicates += 1
                staging.write_rejects([_duplicate(where, row)])
                continue
            seen.add(content)
            kept = splits.setdefault(identity(row), split)
            moved += kept != split
            staging.write_rows(kept, [row])
    staging.counts.update({"duplicates": duplicates, "moved_to_the_split_of_their_prompt": moved})


def _duplicate(where: str, row: Record) -> dict[str, str]:
    name = "row_id" if isinstance(row, SftRow) else "prompt_id"
    assert isinstance(row, SftRow | PromptRow | FeedbackRow | PreferenceRow)
    body = canonical({name: getattr(row, name)})
    return {"where": where, "reason": "duplicate", "detail": "an earlier row is the same", "row": body}
