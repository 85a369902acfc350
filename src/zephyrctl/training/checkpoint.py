"""Checkpoints that can be trusted: one exists only once the file with its hashes does, and is used only if
they hold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from zephyrctl.errors import no_space

SEAL = "checkpoint.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")
_FULL = {28, 122, 27}  # ENOSPC, EDQUOT, EFBIG


@dataclass(frozen=True)
class Found:
    """The newest usable checkpoint (None where there is none) and a sentence for each one passed over."""

    path: Path | None
    step: int
    passed_over: list[str]


def seal(folder: Path, step: int) -> None:
    """Makes `folder` a checkpoint: its files are flushed to disk and hashed, then the hash file appears,
    last."""
    try:
        files = {}
        for path in _files(folder):
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
            files[path.relative_to(folder).as_posix()] = {
                "size": path.stat().st_size,
                "sha256": _sha256(path),
            }
        partial = folder / (SEAL + ".partial")
        with partial.open("w", encoding="utf-8") as out:
            json.dump({"step": step, "files": files}, out, indent=1, sort_keys=True)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(folder / SEAL)
        _sync_folder(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise no_space(folder, error.strerror) from None
        raise


def fault(folder: Path) -> str | None:
    """What is wrong with the checkpoint in `folder`, as a clause; None where every file is what its hash
    says."""
    try:
        body = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        files = dict(body["files"])
    except FileNotFoundError:
        return "was never finished"
    except (OSError, ValueError, KeyError, TypeError):
        return f"has an unreadable {SEAL}"
    for name, entry in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != entry["size"] or _sha256(path) != entry["sha256"]:
            return f"has a damaged {name}"
    return None


def newest(scratch: Path) -> Found:
    """The newest checkpoint under `scratch` whose files all verify; damaged and unfinished ones are passed
    over."""
    passed: list[str] = []
    for step, folder in sorted(_checkpoints(scratch), reverse=True):
        wrong = fault(folder)
        if wrong is None:
            return Found(folder, step, passed)
        passed.append(f"{folder.name} {wrong}")
    return Found(None, 0, passed)


def forget(folder: Path) -> None:
    """Removes a checkpoint folder; its hash file goes first, so that half a folder never passes for a whole
    one."""
    (folder / SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def rotate(scratch: Path, keep: int = 2) -> None:
    """Removes all but the newest `keep` finished checkpoints, and every unfinished one older than those."""
    finished = sorted((s, f) for s, f in _checkpoints(scratch) if (f / SEAL).is_file())
    kept = {f for _, f in finished[-keep:]}
    for _, folder in _checkpoints(scratch):
        if folder not in kept:
            forget(folder)


def _checkpoints(scratch: Path) -> list[tuple[int, Path]]:
    if not scratch.is_dir():
        return []
    return [(int(m[1]), p) for p in scratch.iterdir() if (m := _NAME.match(p.name)) and p.is_dir()]


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(SEAL))


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
