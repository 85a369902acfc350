"""One process of a run over several: `python -m zephyrctl.training.worker FOLDER`, with its rank in the environment.

Events go as lines of JSON to the file descriptor named by ZEPHYRCTL_EVENTS, where one is named; what went wrong goes
into `outcome-<rank>.json` in the job's folder. The process ends with the one that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from zephyrctl.errors import ZephyrError
from zephyrctl.events import Emit, Event, plain, silent
from zephyrctl.training.signals import PARENT

EVENTS = "ZEPHYRCTL_EVENTS"
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Takes part in the run whose job lies in the folder named; the exit code is 0 or the error's."""
    folder = Path((sys.argv[1:] if arguments is None else arguments)[0])
    rank = int(os.environ.get("RANK", "0"))
    end_with_parent()
    # until training listens, a Ctrl-C ends this process as any other signal does
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        _run(folder)
    except ZephyrError as error:
        with contextlib.suppress(OSError):  # the disk may be what is full
            _leave(folder, rank, {"class": type(error).__name__, **error.as_dict(), "code": error.exit_code})
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def end(code: int) -> NoReturn:
    """Ends this process: one that failed at once, since what would tidy up after it (threads, process groups) may wait
    for processes that wait for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    raise SystemExit(code)


def _run(folder: Path) -> None:
    from zephyrctl.training.job import Job
    from zephyrctl.training.loop import run

    lines = _lines()
    run(Job.load(folder, emit=_emitter(lines), deliver=_deliverer(lines)))


def _lines() -> TextIO | None:
    number = os.environ.get(EVENTS)
    return None if number is None else os.fdopen(int(number), "w", encoding="utf-8", buffering=1)


def _emitter(lines: TextIO | None) -> Emit:
    def emit(event: Event) -> None:
        if lines is not None:
            lines.write(json.dumps(plain(event)) + "\n")

    return silent if lines is None else emit


def _deliverer(lines: TextIO | None) -> Any:
    def deliver(name: str, folder: Path) -> None:
        if lines is not None:
            lines.write(json.dumps({"event": "deliver", "name": name, "folder": str(folder)}) + "\n")

    return deliver


def _leave(folder: Path, rank: int, body: dict[str, Any]) -> None:
    partial = folder / f"outcome-{rank}.partial"
    partial.write_text(json.dumps(body), encoding="utf-8")
    partial.replace(partial.with_suffix(".json"))


def end_with_parent() -> None:
    """Has this process killed when the one that started it is gone: by the kernel on Linux, by a look once a second
    elsewhere."""
    parent = int(os.environ.get(PARENT, "0"))
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    end(main())
