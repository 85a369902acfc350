"""Which process made an attempt, and whether it still lives.

Wall time is never asked: pids, boot and start marks are.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Owner:
    """A process as the ledger knows it.

    `started` tells a reused pid from the old one; empty where the system hides it.
    """

    host: str
    boot_id: str
    pid: int
    started: str


@lru_cache(maxsize=1)
def _boot_id() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The command name in parentheses may hold spaces; the start time is the 20th field after it.
    return stat.rpartition(")")[2].split()[19]


def this_process() -> Owner:
    """The owner of attempts made from here."""
    return _owner_of(os.getpid())


@lru_cache(maxsize=2)
def _owner_of(pid: int) -> Owner:
    return Owner(socket.gethostname(), _boot_id(), pid, _started(pid))


def is_dead(owner: Owner) -> bool:
    """True only when it is certain: a process of this host that is gone, or of an earlier boot of it."""
    if owner.host != socket.gethostname():
        return False
    if owner.boot_id != _boot_id():
        return True
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    now = _started(owner.pid)
    return bool(owner.started and now and owner.started != now)
