"""`ckpt/<model-name>`: a relative link to the newest version of that model artifact, a plain model folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from zephyrctl.artifacts import durable
from zephyrctl.artifacts.lock import hold
from zephyrctl.artifacts.ref import Ref, is_name, version_number
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import IntegrityError
from zephyrctl.events import Emit, Warning_


def link_model(store: Store, name: str, emit: Emit) -> None:
    """Points `ckpt/<name>` to the newest version of the model `name`, or takes the link away where none is
    left.

    What is there and is not a link into this store is never replaced; then a warning says so. Raises
    EnvironmentFault.
    """
    link = store.ckpt / name
    with durable.faults(link):
        newest = _newest_model(store, name)
        if newest is None and not link.is_symlink():
            return
        if newest is not None and _points(store, link, newest):
            return
        with hold(store.root / name / ".lock"):
            newest = _newest_model(store, name)
            if not _is_ours(store, link):
                emit(
                    Warning_(
                        f"{link.parent.name}/{link.name} is not a link of this store: left as it is;"
                        f" the model is {newest}"
                    )
                )
            elif newest is None:
                durable.calls.unlink(os.fspath(link))
            else:
                _point(store, link, newest)


def linked_ref(store: Store, path: Path) -> Ref | None:
    """The version that a path stands for: a link of ours in `ckpt/`, or a version's own folder;

    None for anything else.
    """
    try:
        relative = path.resolve().relative_to(store.root.resolve())
    except (OSError, ValueError, RuntimeError):
        return None
    if len(relative.parts) != 2 or not is_name(relative.parts[0]):
        return None
    number = version_number(relative.parts[1])
    return Ref(relative.parts[0], number) if number is not None else None


def _newest_model(store: Store, name: str) -> Ref | None:
    for ref, found in store.scan(name):
        if isinstance(found, IntegrityError) or found.kind == "model":
            return ref
    return None


def _is_ours(store: Store, link: Path) -> bool:
    if not os.path.lexists(link):
        return True
    if not link.is_symlink():
        return False
    target = os.path.normpath(link.parent / link.readlink())
    inside = [os.path.normpath(store.root), os.path.realpath(store.root)]
    return os.path.dirname(os.path.dirname(target)) in inside  # noqa: PTH120


def _target(store: Store, ref: Ref) -> str:
    return os.path.relpath(store.root / ref.name / f"v{ref.version}", store.ckpt)


def _points(store: Store, link: Path, ref: Ref) -> bool:
    return link.is_symlink() and os.fspath(link.readlink()) == _target(store, ref)


def _point(store: Store, link: Path, ref: Ref) -> None:
    durable.make_dir(store.ckpt)
    target = _target(store, ref)
    temporary = store.ckpt / f".{ref.name}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        durable.calls.symlink(target, os.fspath(temporary))
        durable.rename(temporary, link)
    except OSError:
        with contextlib.suppress(OSError):
            durable.calls.unlink(os.fspath(temporary))
        raise
    durable.sync_dir(store.ckpt)
