"""Tags, and taking versions away. Both are kept in `<name>/log.jsonl`, under the name's lock."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from zephyrctl.artifacts import durable
from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.links import link_model
from zephyrctl.artifacts.lock import hold
from zephyrctl.artifacts.ref import Ref, check_name, check_tag, parse_ref
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import RefNotFound, UsageError, ZephyrError
from zephyrctl.events import Emit, silent


def tag(store: Store, ref: str, name: str) -> Artifact:
    """The version that `ref` means, after the tag `name` was made to point to it, in one step.

    Raises EnvironmentFault.
    """
    artifact = store.resolve(ref)
    check_tag(name)
    folder = store.root / artifact.ref.name
    body = {"version": artifact.ref.version, "manifest": artifact.manifest.manifest_digest}
    with durable.faults(folder), hold(folder / ".lock"):
        durable.make_dir(folder / "tags")
        _log(folder, event="tag", tag=name, **body)
        durable.replace(folder / "tags" / name, (json.dumps(body) + "\n").encode())
    return artifact


def untag(store: Store, artifact_name: str, name: str) -> None:
    """Takes the tag `name` away. Raises RefNotFound when there is none."""
    folder = store.root / check_name(artifact_name)
    path = folder / "tags" / check_tag(name)
    if not path.is_file():
        known = ", ".join(store.tags(artifact_name)) or "none"
        raise RefNotFound(f"{artifact_name} has no tag '{name}'", hint=f"its tags: {known}")
    with durable.faults(folder), hold(folder / ".lock"):
        _log(folder, event="untag", tag=name)
        durable.calls.unlink(os.fspath(path))
        durable.sync_dir(path.parent)


def users(store: Store, ref: Ref) -> list[str]:
    """What would miss this version: refs of artifacts made from it, and its tags as `name:tag`."""
    found = [f"{ref.name}:{t}" for t in _tags_of(store, ref)]
    for name in store.names():
        for other, artifact in store.scan(name):
            if isinstance(artifact, Artifact) and other != ref:
                named = [i.ref for i in artifact.manifest.inputs]
                if str(ref) in [*named, *artifact.manifest.sides.values()]:
                    found.append(str(other))
    return found


def remove(store: Store, ref: str, *, yes: bool = False, emit: Emit = silent) -> Ref:
    """The version that was taken away: moved to the store's `.trash`. Its number is never given again.

    Also takes versions whose manifest is damaged. Raises UsageError when other artifacts were made from it or
    a tag points to it, unless `yes`; RefNotFound, EnvironmentFault.
    """
    asked = parse_ref(ref)
    if asked.version is not None and asked.version in store.numbers(asked.name):
        target = Ref(asked.name, asked.version)
    else:
        target = store.resolve(ref).ref
    needed = users(store, target)
    if needed and not yes:
        raise UsageError(
            f"{target} is used by {', '.join(needed[:8])}", hint=f"zephyrctl artifacts rm {target} --yes"
        )
    folder = store.root / target.name
    with durable.faults(folder):
        with hold(folder / ".lock"):
            # logged first: a crash between the two leaves the version, and its number is safe either way
            _log(folder, event="remove", version=target.version)
            for label in _tags_of(store, target):
                durable.calls.unlink(os.fspath(folder / "tags" / label))
            durable.make_dir(store.trash)
            durable.rename(folder / f"v{target.version}", store.trash / f"{target}.{os.urandom(4).hex()}")
            durable.sync_dir(folder)
        link_model(store, target.name, emit)
    return target


def _tags_of(store: Store, ref: Ref) -> list[str]:
    with contextlib.suppress(ZephyrError):
        return store.tag_of(ref)
    return []


def _log(folder: Path, **entry: object) -> None:
    body = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry}
    path = folder / "log.jsonl"
    before = path.read_bytes() if path.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    durable.replace(path, before + json.dumps(body).encode() + b"\n")
