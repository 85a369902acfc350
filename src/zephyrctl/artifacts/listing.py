"""What `artifacts ls`, `show` and `verify` say, as plain data."""

from __future__ import annotations

from typing import Any

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.ref import Ref
from zephyrctl.artifacts.store import Store
from zephyrctl.config import canonical
from zephyrctl.errors import IntegrityError, RefNotFound, ZephyrError

_NOT_KNOBS = {"note", "out"}


def list_versions(
    store: Store, name: str | None = None, *, kind: str | None = None, sides: bool = True
) -> list[dict[str, Any]]:
    """One dict a version, by name, newest first: ref, kind, rows, scores, world, created, teachers, tags,
    knobs.

    `knobs` holds only the settings that differ among the versions of one stage shown here. A version whose
    manifest is damaged has `damaged` instead. Raises RefNotFound for a name that has no version.
    """
    names = [name] if name is not None else store.names()
    if name is not None and not store.numbers(name):
        store.resolve(name)
    found = [(ref, a) for each in names for ref, a in store.scan(each) if _wanted(a, kind, sides)]
    differing = _differing([a for _, a in found if isinstance(a, Artifact)])
    return [_entry(store, ref, artifact, differing) for ref, artifact in found]


def describe(artifact: Artifact) -> dict[str, Any]:
    """The manifest as a JSON-ready dict, with the ref and the folder."""
    body = artifact.manifest.model_dump(mode="json", by_alias=True)
    return {"ref": str(artifact.ref), "path": str(artifact.path), **body}


def verify(store: Store, refs: list[str]) -> list[dict[str, Any]]:
    """For every version asked for (refs, or `all` for all there are): ref, ok, problems.

    All files are read again, no cache is believed. Tags that point to nothing are problems of their name.
    """
    results: list[dict[str, Any]] = []
    for text in refs:
        if text == "all":
            for name in store.names():
                results += [_verdict(ref, artifact) for ref, artifact in store.scan(name)]
                results += _tag_problems(store, name)
        else:
            try:
                artifact = store.resolve(text)
                results.append(_verdict(artifact.ref, artifact))
            except IntegrityError as error:
                results.append({"ref": text, "ok": False, "problems": [error.message]})
    return results


def _verdict(ref: Ref, artifact: Artifact | IntegrityError) -> dict[str, Any]:
    problems = [artifact.message] if isinstance(artifact, IntegrityError) else artifact.problems()
    return {"ref": str(ref), "ok": not problems, "problems": problems}


def _tag_problems(store: Store, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        tags = store.tags(name)
    except IntegrityError as error:
        return [{"ref": name, "ok": False, "problems": [error.message]}]
    for tag in tags:
        try:
            store.resolve(f"{name}:{tag}")
        except (RefNotFound, IntegrityError) as error:
            found.append({"ref": f"{name}:{tag}", "ok": False, "problems": [error.message]})
    return found


def _wanted(artifact: Artifact | IntegrityError, kind: str | None, sides: bool) -> bool:
    if isinstance(artifact, IntegrityError):
        return True
    return kind in (None, artifact.kind) and (sides or not artifact.manifest.side)


def _entry(
    store: Store, ref: Ref, artifact: Artifact | IntegrityError, differing: dict[tuple[str, str], set[str]]
) -> dict[str, Any]:
    if isinstance(artifact, IntegrityError):
        return {"ref": str(ref), "name": ref.name, "version": ref.version, "damaged": artifact.message}
    manifest = artifact.manifest
    knobs = {k: v for k, v in manifest.config.items() if k in differing.get(_group(artifact), set())}
    return {
        "ref": str(ref),
        "name": ref.name,
        "version": ref.version,
        "kind": manifest.kind,
        "side": manifest.side,
        "rows": artifact.count() if artifact.data_files() else None,
        "headline": manifest.headline,
        "world": manifest.world,
        "stage": manifest.stage,
        "edition": manifest.edition,
        "created": manifest.provenance.get("created"),
        "teachers": sorted({_teacher(t) for t in manifest.teachers}),
        "tags": _tags(store, ref),
        "knobs": knobs,
        "content_digest": manifest.content_digest,
        "path": str(artifact.path),
    }


def _teacher(entry: dict[str, Any]) -> str:
    return str(entry.get("model") or entry.get("asked") or entry.get("label") or entry.get("provider") or "?")


def _tags(store: Store, ref: Ref) -> list[str]:
    try:
        return store.tag_of(ref)
    except ZephyrError:
        return []


def _group(artifact: Artifact) -> tuple[str, str]:
    return artifact.manifest.stage, artifact.kind


def _differing(artifacts: list[Artifact]) -> dict[tuple[str, str], set[str]]:
    """For each stage and kind, the settings that have more than one value among these artifacts."""
    values: dict[tuple[str, str], dict[str, set[str]]] = {}
    for artifact in artifacts:
        if artifact.manifest.side:
            continue
        stage = values.setdefault(_group(artifact), {})
        for key, value in artifact.manifest.config.items():
            if key not in _NOT_KNOBS:
                stage.setdefault(key, set()).add(canonical(value))
    return {stage: {k for k, found in keys.items() if len(found) > 1} for stage, keys in values.items()}
