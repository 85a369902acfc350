"""sha256 of files. Large files that cannot have changed since (size, times, inode) are not read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from zephyrctl.artifacts import durable

CACHED_SUFFIXES = (".safetensors",)
# A file changed within this time of being hashed could change again unseen, on disks with coarse times.
_SETTLED_NS = 2_000_000_000


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashCache:
    """sha256 of model weights, remembered in `folder` by path, size, mtime, ctime and inode;

    None remembers nothing. A cache that cannot be written is no error: hashing is then only slower.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def sha256(self, path: Path) -> str:
        """The sha256 of `path`, read from the disk unless it is a weights file known not to have changed."""
        if self.folder is None or not path.name.endswith(CACHED_SUFFIXES):
            return hash_file(path)
        known = self._known(self.folder, path)
        if known is not None:
            return known
        before = _state(path)
        digest = hash_file(path)
        if _state(path) == before and time.time_ns() - max(before[1], before[2]) > _SETTLED_NS:
            self.remember(path, digest)
        return digest

    def remember(self, path: Path, sha256: str) -> None:
        """Keeps what `sha256` gave for the file as it is now (called by the one who just wrote it)."""
        folder = self.folder
        if folder is None or not path.name.endswith(CACHED_SUFFIXES) or not folder.parent.is_dir():
            return
        body = json.dumps({"path": os.fspath(path), "state": list(_state(path)), "sha256": sha256})
        with contextlib.suppress(OSError):
            durable.make_dir(folder)
            durable.replace(_entry(folder, path), body.encode())

    def _known(self, folder: Path, path: Path) -> str | None:
        try:
            body = json.loads(_entry(folder, path).read_bytes())
            if body["path"] == os.fspath(path) and body["state"] == list(_state(path)):
                return str(body["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None


def _entry(folder: Path, path: Path) -> Path:
    return folder / (hashlib.sha256(os.fsencode(path)).hexdigest()[:32] + ".json")


def _state(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
