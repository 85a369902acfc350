"""Kernel locks.

The lock is the flock, which dies with its holder; the owner file beside it is only text for people.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from zephyrctl.artifacts import durable
from zephyrctl.errors import Locked

_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


def host() -> str:
    """This machine's name, for messages and manifests."""
    return socket.gethostname()


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Waits for the lock file `path` and holds it. For short work: tags, links."""
    handle = _take(path, wait=True)
    assert handle is not None
    try:
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def hold_or_refuse(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file `path` for long work.

    Raises Locked, naming process and host, when another process holds it.
    """
    handle = _take(path, wait=False)
    if handle is None:
        raise Locked(
            f"another process is working on {what}: {_owner(path)}",
            hint="run the same command again when it has finished; it will then find the result",
        )
    try:
        durable.replace(path.with_name("owner.json"), _card())
        yield
    finally:
        os.close(handle)


def try_hold(path: Path) -> int | None:
    """A handle that holds the lock until it is closed, or None when another process has it.

    Makes no lock file.
    """
    try:
        return _take(path, wait=False, flags=os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None


def _take(path: Path, *, wait: bool, flags: int = _OPEN) -> int | None:
    while True:
        try:
            handle = os.open(path, flags, 0o644)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            durable.make_dir(path.parent)
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # the holder before us may have removed the file: nobody else would find this lock then
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _card() -> bytes:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return json.dumps({"pid": os.getpid(), "host": host(), "started": started}).encode()


def _owner(path: Path) -> str:
    try:
        body = json.loads(path.with_name("owner.json").read_bytes())
        return f"process {body['pid']} on {body['host']}, since {body['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its owner is not known yet"
