"""Checkpoints that can be trusted: one exists only once the file with its hashes does, and is used only if
they hold.

The processes that trained together hash together: each calls `hash_share` once all files are written, and when
all have, the leader calls `seal`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from zephyrctl.errors import no_space

SEAL = "checkpoint.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""The errors of a disk that takes no more."""
_THREADS = 4
"""Files that one process hashes at a time: a disk and the processor's other cores have no more to give."""

Entry = dict[str, Any]
"""What is known of a file: `size` in bytes and `sha256` as 64 hex digits."""


@dataclass(frozen=True)
class Found:
    """The newest usable checkpoint (None where there is none) and a sentence for each one passed over."""

    path: Path | None
    step: int
    passed_over: list[str]
    world: int = 1
    """How many processes wrote it."""


def hash_share(folder: Path, rank: int, world: int) -> None:
    """Flushes and hashes this process's share of the files of `folder`, and leaves the result beside them.

    All files must be written by then. The shares of `world` processes are about equal in bytes. Raises
    EnvironmentFault where the disk is full.
    """
    try:
        _write(_share_file(folder, rank), _entries(folder, _share(folder, rank, world)))
    except OSError as error:
        raise _explained(folder, error) from None


def seal(folder: Path, step: int, world: int = 1) -> None:
    """Makes `folder` a checkpoint of `world` processes: its hash file appears, last.

    Hashes that `hash_share` left are taken over; what no share covers is flushed and hashed here. Raises
    EnvironmentFault where the disk is full.
    """
    try:
        known = _shares(folder, world)
        names = _files(folder)
        known |= _entries(folder, [name for name in names if not _fits(folder / name, known.get(name))])
        files = {name: known[name] for name in names}
        for rank in range(world):
            _share_file(folder, rank).unlink(missing_ok=True)
        _write(folder / SEAL, {"step": step, "world": world, "files": files})
        for inside in {(folder / name).parent for name in files} | {folder, folder.parent}:
            _sync_folder(inside)
    except OSError as error:
        raise _explained(folder, error) from None


def fault(folder: Path) -> str | None:
    """What is wrong with the checkpoint in `folder`, as a clause; None where every file is what its hash
    says and there is no other."""
    try:
        body = read_seal(folder)
    except FileNotFoundError:
        return "was never finished"
    except (OSError, ValueError):
        return f"has an unreadable {SEAL}"
    named = _NAME.match(folder.name)
    if named is not None and int(named[1]) != body["step"]:
        return f"has the {SEAL} of step {body['step']}"
    files: dict[str, Entry] = body["files"]
    for name, entry in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != entry["size"]:
            return f"has a damaged {name}"
    strange = sorted(set(_files(folder)) - files.keys())
    if strange:
        return f"holds {strange[0]}, which its {SEAL} does not name"
    return _damaged(folder, files)


def read_seal(folder: Path) -> dict[str, Any]:
    """The hash file of a checkpoint: `step`, `world`, and `files` with an entry for each.

    Raises OSError where it cannot be read (FileNotFoundError where there is none) and ValueError where it is
    not such a file.
    """
    body = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    try:
        files = {str(name): {"size": int(e["size"]), "sha256": str(e["sha256"])} for name, e in
                 body["files"].items()}  # fmt: skip
        step, world = int(body["step"]), int(body.get("world", 1))
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder / SEAL} is not a checkpoint's hash file") from None
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in files):
        raise ValueError(f"{folder / SEAL} names a file outside of its folder")
    return {"step": step, "world": world, "files": files}


def newest(scratch: Path) -> Found:
    """The newest checkpoint under `scratch` whose files all verify; damaged and unfinished ones are passed
    over."""
    passed: list[str] = []
    for step, folder in sorted(_checkpoints(scratch), reverse=True):
        wrong = fault(folder)
        if wrong is None:
            return Found(folder, step, passed, read_seal(folder)["world"])
        passed.append(f"{folder.name} {wrong}")
    return Found(None, 0, passed)


def forget(folder: Path) -> None:
    """Removes a checkpoint folder; its hash file goes first, so that half a folder never passes for a whole
    one."""
    (folder / SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def rotate(scratch: Path, keep: int = 2, *, saved: int | None = None) -> None:
    """Removes all but the newest `keep` finished checkpoints, and every unfinished one.

    `saved` is the step just saved: what stands beyond it was passed over as damaged when the run resumed, and
    goes too, so that it does not count among those kept.
    """
    there = _checkpoints(scratch)
    finished = sorted((s, f) for s, f in there if (f / SEAL).is_file() and (saved is None or s <= saved))
    kept = {f for _, f in finished[-keep:]}
    for _, folder in there:
        if folder not in kept:
            forget(folder)


def _checkpoints(scratch: Path) -> list[tuple[int, Path]]:
    if not scratch.is_dir():
        return []
    return [(int(m[1]), p) for p in scratch.iterdir() if (m := _NAME.match(p.name)) and p.is_dir()]


def _files(folder: Path) -> list[str]:
    """The files of a checkpoint by name, `/` between folders; the hash files themselves left out."""
    found = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return [p.as_posix() for p in found if not p.as_posix().startswith(SEAL)]


def _share(folder: Path, rank: int, world: int) -> list[str]:
    """The files that `rank` hashes: the largest first, each to the process with the fewest bytes so far."""
    sizes = {name: (folder / name).stat().st_size for name in _files(folder)}
    loads = [0] * world
    mine = []
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        taker = loads.index(min(loads))
        loads[taker] += sizes[name] + 1
        if taker == rank:
            mine.append(name)
    return mine


def _shares(folder: Path, world: int) -> dict[str, Entry]:
    known: dict[str, Entry] = {}
    for rank in range(world):
        try:
            known |= json.loads(_share_file(folder, rank).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # the leader hashes what a share does not say
            continue
    return known


def _share_file(folder: Path, rank: int) -> Path:
    return folder / f"{SEAL}.rank-{rank}"


def _fits(path: Path, entry: Entry | None) -> bool:
    return entry is not None and entry["size"] == path.stat().st_size


def _entries(folder: Path, names: list[str]) -> dict[str, Entry]:
    def entry(name: str) -> Entry:
        path = folder / name
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        return {"size": path.stat().st_size, "sha256": _sha256(path)}

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(entry, names), strict=True))


def _damaged(folder: Path, files: Mapping[str, Entry]) -> str | None:
    names = sorted(files)
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, found in zip(names, pool.map(lambda n: _sha256(folder / n), names), strict=True):
            if found != files[name]["sha256"]:
                return f"has a damaged {name}"
    return None


def _write(path: Path, body: Mapping[str, Any]) -> None:
    """The JSON file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as out:
        json.dump(body, out, indent=1, sort_keys=True)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explained(folder: Path, error: OSError) -> Exception:
    return no_space(folder, error.strerror) if error.errno in FULL else error
