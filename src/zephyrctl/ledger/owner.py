"""Which process made an attempt, and whether it still lives.

Wall time is never compared: pids, boot and start marks are, and for other machines and other PID namespaces whether
a counter still grows.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

BEAT_SECONDS = 15.0
"""How often a living owner lets its counter grow."""
PATIENCE_SECONDS = 120.0
"""An owner on another machine whose counter stands still for so long is taken for gone."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True)
class Owner:
    """A process as the ledger knows it.

    `boot_id` is the boot's mark and, behind a space, that of the PID namespace. `started` tells a reused pid from the
    old one. Marks are empty where the system hides them.
    """

    host: str
    boot_id: str
    pid: int
    started: str


@lru_cache(maxsize=1)
def _boot_id() -> str:
    marks = ["", ""]
    with contextlib.suppress(OSError):
        marks[0] = _BOOT.read_text(encoding="ascii").strip()
    with contextlib.suppress(OSError):
        marks[1] = str(_NAMESPACE.readlink())
    return " ".join(marks).rstrip()


def _stat(pid: int) -> tuple[str, str]:
    """State letter and start mark of a process; empty where the system hides them."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    # The command name in parentheses may hold spaces; after it come the state and, 19 fields on, the start time.
    fields = stat.rpartition(")")[2].split()
    return fields[0], fields[19]


def this_process() -> Owner:
    """The owner of attempts made from here."""
    return _owner_of(os.getpid())


@lru_cache(maxsize=2)
def _owner_of(pid: int) -> Owner:
    return Owner(socket.gethostname(), _boot_id(), pid, _stat(pid)[1])


def judged_here(owner: Owner) -> bool:
    """Whether the process table of this process tells about an owner: not one on another host, nor one in another
    PID namespace of this boot, whose pids are numbers of other processes here."""
    if owner.host != socket.gethostname():
        return False
    boot, _, space = owner.boot_id.partition(" ")
    our_boot, _, our_space = _boot_id().partition(" ")
    return boot != our_boot or space == our_space or not (space and our_space)


def is_dead(owner: Owner) -> bool:
    """True only when it is certain: a process of this host that is gone, or of an earlier boot of it."""
    if not judged_here(owner):
        return False
    if owner.boot_id.partition(" ")[0] != _boot_id().partition(" ")[0]:
        return True
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    state, started = _stat(owner.pid)
    # A killed process stays listed as a zombie until its parent asks for it, which some containers never do.
    return state in ("Z", "X") or bool(owner.started and started and owner.started != started)


_OPEN: set[int] = set()


class Watch:
    """Judges whether the owner of an attempt is gone.

    On this machine the process table tells. In this process a ledger that was closed is gone: nobody will finish
    what it had in flight. On other machines and in other containers an owner is gone when its counter stood
    still for `PATIENCE_SECONDS` while this watch looked.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[int, tuple[int, float]] = {}

    def gone(self, owner_id: int, owner: Owner, beat: int) -> bool:
        """Whether what this owner has in flight may be taken over. `beat` is its counter as read now."""
        if owner == this_process():
            return owner_id not in _OPEN
        if judged_here(owner):
            return is_dead(owner)
        before = self._seen.get(owner_id)
        if before is None or before[0] != beat:
            self._seen[owner_id] = (beat, self._clock())
            return False
        return self._clock() - before[1] > PATIENCE_SECONDS


def opened(owner_id: int) -> None:
    """From now on this process has an owner of that number."""
    _OPEN.add(owner_id)


def closed(owner_id: int) -> None:
    """It has no longer."""
    _OPEN.discard(owner_id)
