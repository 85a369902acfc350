"""Which steps lie behind an artifact: its own, those of its parts, and those of everything it was made from."""

from __future__ import annotations

from dataclasses import dataclass, field

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.ref import looks_like_ref, parse_ref
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import IntegrityError, RefNotFound


@dataclass
class Behind:
    """The keys of the steps, newest first, and the refs of ancestors that are no longer as they were used."""

    ref: str
    step_keys: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def steps_behind(store: Store, ref: str) -> Behind:
    """All steps that led to the version that `ref` means.

    Raises RefNotFound, IntegrityError for that version only; ancestors that are gone or changed are named in `lost`.
    """
    artifact = store.resolve(ref)
    behind = Behind(str(artifact.ref))
    waiting, seen = [artifact], {str(artifact.ref)}
    while waiting:
        current = waiting.pop(0)
        manifest = current.manifest
        parts = (manifest.model_extra or {}).get("parts") or []
        for key in (manifest.step_key, *(str(part["step_key"]) for part in parts)):
            if key not in behind.step_keys:
                behind.step_keys.append(key)
        for item in manifest.inputs:
            if item.ref in seen or not names_version(item):
                continue
            seen.add(item.ref)
            found = unchanged(store, item)
            if found is None:
                behind.lost.append(item.ref)
            else:
                waiting.append(found)
    return behind


def names_version(item: InputRef) -> bool:
    """Whether an input is a version of a store, and nothing from outside."""
    return looks_like_ref(item.ref) and parse_ref(item.ref).version is not None


def unchanged(store: Store, item: InputRef) -> Artifact | None:
    """The version that an input names, or None where it is gone, damaged, or has another content now."""
    try:
        artifact = store.resolve(item.ref)
    except (RefNotFound, IntegrityError):
        return None
    return artifact if artifact.digest == item.digest else None
