"""What in a store nothing needs any more, and taking it away."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zephyrctl.artifacts import durable
from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.lock import try_hold
from zephyrctl.artifacts.ref import Ref
from zephyrctl.artifacts.step import PARTIAL
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.tags import remove
from zephyrctl.events import Emit, silent

DAYS = 7.0
"""Work that nobody touched for so many days counts as abandoned."""


@dataclass(frozen=True)
class Garbage:
    """One thing to take away: a folder of unfinished work or of the trash, or a version."""

    what: str
    """`abandoned work`, `cache`, `trash`, `partial` or `unused`."""
    name: str
    why: str
    bytes: int
    path: Path
    ref: Ref | None = None

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        return {"what": self.what, "name": self.name, "why": self.why, "bytes": self.bytes}


def find_garbage(
    store: Store, *, days: float = DAYS, unused: bool = False, now: float | None = None
) -> list[Garbage]:
    """Abandoned work, trash, and partial versions that a finished one of the same step stands for.

    Work counts as abandoned when no process holds it and nothing in it changed for `days` days: until then, the same
    command resumes it. With `unused` also versions that are not the newest of their name, have no tag, and that
    nothing which is kept was made from.
    """
    moment = time.time() if now is None else now
    found = [*_work(store, days, moment), *_trash(store, days, moment)]
    versions = [a for name in store.names() for _, a in store.scan(name) if isinstance(a, Artifact)]
    partial = [a for a in versions if a.manifest.counts.get(PARTIAL) and _superseded(a, versions)]
    gone = {str(a.ref) for a in partial}
    found += [
        _version(a, "partial", "a finished version of the same step is there")
        for a in partial
        if _free(store, a, versions)
    ]
    if unused:
        found += [
            _version(a, "unused", "an older version that no tag names and nothing was made from")
            for a in _unused(store, versions)
            if str(a.ref) not in gone
        ]
    return found


def take_away(store: Store, garbage: list[Garbage], emit: Emit = silent) -> int:
    """The bytes that were freed. Versions go to the trash first, which is emptied by a later run.

    Work that a process has taken up meanwhile is left alone. Raises EnvironmentFault.
    """
    freed = 0
    for item in garbage:
        if item.ref is not None:
            remove(store, str(item.ref), yes=True, emit=emit)
        elif item.what == "trash" or not _busy(item.path):
            with durable.faults(item.path), _held(item.path):
                durable.remove_tree(item.path, last="lock")
            freed += item.bytes
    return freed


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder of unfinished work, where it has one."""
    handle = try_hold(folder / "lock")
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _busy(folder: Path) -> bool:
    """Whether a process works in the folder now."""
    handle = try_hold(folder / "lock")
    if handle is not None:
        os.close(handle)
    return handle is None and (folder / "lock").exists()


def _work(store: Store, days: float, now: float) -> Iterator[Garbage]:
    for folder in _children(store.work):
        age = (now - _newest(folder)) / 86400
        if age < days or _busy(folder):
            continue
        since = f"not touched for {age:.0f} days"
        if folder == store.cache.folder:
            yield Garbage("cache", folder.name, f"{since}; made anew when needed", _size(folder), folder)
        else:
            why = f"{since}; replies already paid for stay in the ledger"
            yield Garbage("abandoned work", folder.name, why, _size(folder), folder)


def _trash(store: Store, days: float, now: float) -> Iterator[Garbage]:
    for folder in _children(store.trash):
        age = (now - folder.stat().st_ctime) / 86400
        if age >= days:
            yield Garbage("trash", folder.name, f"removed {age:.0f} days ago", _size(folder), folder)


def _superseded(partial: Artifact, versions: list[Artifact]) -> bool:
    manifest = partial.manifest
    return any(
        other.manifest.step_key == manifest.step_key
        and other.ref.name == partial.ref.name
        and not other.manifest.counts.get(PARTIAL)
        for other in versions
    )


def _free(store: Store, artifact: Artifact, versions: list[Artifact]) -> bool:
    """Whether neither a tag nor another version names it."""
    return str(artifact.ref) not in _named(versions) and not store.tag_of(artifact.ref)


def _unused(store: Store, versions: list[Artifact]) -> list[Artifact]:
    """Versions that cannot be reached from what is kept: the newest of each name, and tagged ones."""
    by_ref = {str(a.ref): a for a in versions}
    waiting = [a for a in versions if a.ref.version == store.numbers(a.ref.name)[-1] or store.tag_of(a.ref)]
    kept = {str(a.ref) for a in waiting}
    while waiting:
        for ref in _needs(waiting.pop()):
            if ref in by_ref and ref not in kept:
                kept.add(ref)
                waiting.append(by_ref[ref])
    return [a for ref, a in by_ref.items() if ref not in kept]


def _needs(artifact: Artifact) -> list[str]:
    manifest = artifact.manifest
    parts = (manifest.model_extra or {}).get("parts") or []
    return [*(i.ref for i in manifest.inputs), *manifest.sides.values(), *(str(p["ref"]) for p in parts)]


def _named(versions: list[Artifact]) -> set[str]:
    return {ref for artifact in versions for ref in _needs(artifact)}


def _version(artifact: Artifact, what: str, why: str) -> Garbage:
    return Garbage(what, str(artifact.ref), why, _size(artifact.path), artifact.path, artifact.ref)


def _children(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())
    return []


def _newest(folder: Path) -> float:
    times = [folder.stat().st_mtime]
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                times.append(Path(top, name).lstat().st_mtime)
    return max(times)


def _size(folder: Path) -> int:
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(top, name).lstat().st_size
    return total
