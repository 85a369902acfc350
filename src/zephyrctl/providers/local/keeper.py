"""Runs a server for exactly as long as the process that asked for it.

    python -m zephyrctl.providers.local.keeper GRACE COMMAND…

The asker holds the other end of this process's standard input. Whatever ends the asker, `kill -9` included, closes
that end, and the server is stopped: TERM to its whole process group, KILL after GRACE seconds. The server is in a
session of its own, so that an interrupt typed at the terminal reaches the asker alone, which then decides.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

_LOOK_SECONDS = 0.1
_NOT_STARTED = 127
_LINGER_SECONDS = 5.0


def keep(grace: float, command: Sequence[str]) -> int:
    """Run `command` until it ends or nobody needs it any more; its exit code, negative for a signal."""
    asked_to_stop = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return _NOT_STARTED
    while server.poll() is None:
        readable, _, _ = select.select([sys.stdin.fileno()], [], [], _LOOK_SECONDS)
        if asked_to_stop or (readable and not os.read(sys.stdin.fileno(), 1)):
            _tell(server.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(grace)
            break
    _end_group(server)
    return server.wait()


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """KILL to what is left of the server's group, and a moment for it to be gone and its memory free."""
    deadline = time.monotonic() + _LINGER_SECONDS
    _tell(server.pid, signal.SIGKILL)
    while (server.poll() is None or _tell(server.pid, 0)) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS / 5)


def _tell(group: int, number: int) -> bool:
    """Send a signal (0 = none) to a process group; False where nobody is left in it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    code = keep(float(sys.argv[1]), sys.argv[2:])
    raise SystemExit(code if code >= 0 else 128 - code)
