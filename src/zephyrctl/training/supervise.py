"""The processes of a run, started together, watched together and gone together."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyrctl import errors, events
from zephyrctl.errors import EnvironmentFault, Interrupted, Preempted, ZephyrError, no_space
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.engines import environment, of_no_launcher
from zephyrctl.training.job import Deliver
from zephyrctl.training.signals import PARENT, stop_signal, stopped
from zephyrctl.training.worker import EVENTS

PROGRAM = ("-m", "zephyrctl.training.worker")
"""What Python is told to run as each process."""
GRACE = 5.0
"""Seconds that the others have to report a fault of their own once one process has failed."""
_NAP = 0.2
_ROOM = 1 << 20
"""Bytes that a disk has free on which what a process leaves behind can still be written."""
_KINDS: dict[str, type[events.Event]] = {
    cls.__name__.rstrip("_").lower(): cls
    for cls in (events.Note, events.Warning_, events.Progress, events.Metric, events.Table)
}


@dataclass(frozen=True)
class Launch:
    """The processes of this machine."""

    choice: EngineChoice
    folder: Path
    """Holds the job, the logs and the outcomes."""
    machine: int = 0
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def local(self) -> int:
        """Processes on this machine."""
        return self.choice.processes // self.choice.machines

    @property
    def first(self) -> int:
        """The rank of this machine's first process."""
        return self.machine * self.local

    @property
    def ranks(self) -> range:
        """The ranks of this machine's processes."""
        return range(self.first, self.first + self.local)

    def command(self, local_rank: int) -> tuple[dict[str, str], list[str]]:
        """The environment added and the command of one process."""
        added = environment(
            self.choice,
            rank=self.first + local_rank,
            local_rank=local_rank,
            local_world=self.local,
            address=self.address,
            port=self.port,
            folder=self.folder,
        )
        return added, [sys.executable, *PROGRAM, str(self.folder)]

    def shell_lines(self) -> list[str]:
        """What is run on this machine, one line per process, as a shell takes it."""
        lines = []
        for rank in range(self.local):
            added, command = self.command(rank)
            lines.append(
                " ".join([*(f"{k}={shlex.quote(v)}" for k, v in added.items()), shlex.join(command)])
            )
        return lines


def free_port() -> int:
    """A port that is free on this machine now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def rendezvous(text: str | None) -> tuple[str, int]:
    """`host:port` in two; a free port of this machine where none is named. Raises UsageError."""
    if text is None:
        return "127.0.0.1", free_port()
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise errors.UsageError(f"--rendezvous {text}: expected host:port, such as node1:29500")
    return host, int(port)


@dataclass
class _Ranks:
    """The running processes and what was heard of them."""

    launch: Launch
    emit: events.Emit
    deliver: Deliver
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)
    """Place on this machine to exit code, in the order in which processes ended by themselves."""

    def start(self) -> int:
        """Starts all; returns the reading end of the leader's events."""
        reading, writing = os.pipe()
        try:
            for rank in range(self.launch.local):
                self._start(rank, writing if rank == 0 else None)
        finally:
            os.close(writing)
        return reading

    def _start(self, rank: int, writing: int | None) -> None:
        added, command = self.launch.command(rank)
        log = self.launch.folder / f"rank-{self.launch.first + rank}.log"
        environ = {**of_no_launcher(os.environ), **added, PARENT: str(os.getpid())}
        environ.pop(EVENTS, None)
        if writing is not None:
            environ[EVENTS] = str(writing)
        with log.open("wb") as out:
            self.processes.append(
                subprocess.Popen(
                    command,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    pass_fds=() if writing is None else (writing,),
                    start_new_session=True,
                )
            )
        self.logs.append(log)

    def tell(self, number: int) -> None:
        """Sends a signal to every process that still runs."""
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    def look(self) -> bool:
        """Notes who has ended since the last look; whether any process still runs."""
        fresh = {
            rank: process.returncode
            for rank, process in enumerate(self.processes)
            if rank not in self.ends and process.poll() is not None
        }
        # one that was killed comes before those that lost it a moment later
        for rank in sorted(fresh, key=lambda r: (fresh[r] >= 0, r)):
            self.ends[rank] = fresh[rank]
            self._kill(rank)
        return len(self.ends) < len(self.processes)

    def failed(self) -> bool:
        return any(self.ends.values())

    def end(self) -> None:
        """Kills what still runs, with all it started, and waits for it."""
        running = [rank for rank, process in enumerate(self.processes) if process.poll() is None]
        for rank in running:
            self._kill(rank)
        for rank in running:
            self.processes[rank].wait()

    def _kill(self, rank: int) -> None:
        """Kills a process and whatever it started; it leads a group of its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.processes[rank].pid, signal.SIGKILL)

    def hear(self, line: bytes) -> None:
        """One line of the leader's."""
        body: dict[str, Any] = json.loads(line)
        kind = body.pop("event")
        if kind == "deliver":
            self.deliver(body["name"], Path(body["folder"]))
        elif kind in _KINDS:
            if kind == "table":
                body["columns"], body["rows"] = tuple(body["columns"]), tuple(map(tuple, body["rows"]))
            self.emit(_KINDS[kind](**body))


def run_ranks(
    launch: Launch, emit: events.Emit, deliver: Deliver, *, clock: Callable[[], float] = time.monotonic
) -> None:
    """Runs the job in `launch.folder` over this machine's processes until all have ended.

    A signal is passed on once, so that the run saves and ends; a second one ends it at once. Where one process
    fails the others are ended within seconds. Raises what the processes raised, EnvironmentFault where one died.
    """
    for rank in launch.ranks:
        _outcome(launch.folder, rank).unlink(missing_ok=True)
    ranks = _Ranks(launch, emit, deliver)
    with stop_signal() as stop:
        told: int | None = None
        failed_at: float | None = None
        try:
            with _Lines(ranks.start()) as lines:
                while ranks.look() or lines.open:
                    for line in lines.come():
                        ranks.hear(line)
                    if stop.number is not None and told is None:
                        told = stop.number
                        ranks.tell(told)
                    if ranks.failed():
                        failed_at = clock() if failed_at is None else failed_at
                        if clock() - failed_at > GRACE:
                            break
        finally:
            ranks.end()
    if ranks.failed():
        raise _what_happened(launch, ranks, told)


class _Lines:
    """The lines that come through a pipe, a fifth of a second's patience at a time."""

    def __init__(self, reading: int) -> None:
        self.open = True
        self._pipe = os.fdopen(reading, "rb", buffering=0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)
        self._rest = b""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self._selector.close()
        self._pipe.close()

    def come(self) -> list[bytes]:
        """The lines that are there, none after a while; `open` ends with the last writer."""
        if not self.open:
            time.sleep(_NAP)
            return []
        if not self._selector.select(_NAP):
            return []
        data = self._pipe.read(1 << 16) or b""
        self.open = bool(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines


def _outcome(folder: Path, rank: int) -> Path:
    return folder / f"outcome-{rank}.json"


def _what_happened(launch: Launch, ranks: _Ranks, told: int | None) -> ZephyrError:
    """The error of the run.

    What a process put into words goes before what it died of, and a fault before the word that the run stopped as it
    was asked to: that one process was asked to stop does not explain why another ran out of memory.
    """
    own = list(launch.ranks)
    others = [rank for rank in range(launch.choice.processes) if rank not in launch.ranks]
    bodies = [_body(_outcome(launch.folder, rank)) for rank in own + others]
    said = [_rebuilt(body) for body in bodies if body is not None]
    faults = [error for error in said if not isinstance(error, Preempted | Interrupted)]
    if faults or said:
        return (faults or said)[0]
    dead = {rank: code for rank, code in ranks.ends.items() if code != 0}
    if told is not None and -told in dead.values():
        return stopped(told, "no step was made since, and earlier checkpoints are kept")
    if shutil.disk_usage(launch.folder).free < _ROOM:  # too little for words
        return no_space(launch.folder, "the disk is full")
    place, code = next(iter(dead.items()))
    log = ranks.logs[place]
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        how += " (so a kernel does that has no memory left)" if code == -signal.SIGKILL else ""
    else:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        how = f"ended with {code}{f': {tail[-1][:300]}' if tail else ''}"
    return EnvironmentFault(
        f"process {launch.first + place} of {launch.choice.processes} {how}",
        hint=f"its log: {log}; the same command goes on from the newest checkpoint",
    )


def _body(path: Path) -> dict[str, Any] | None:
    """What a process left; None where it left nothing, or was killed over it."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found


def _rebuilt(body: dict[str, Any]) -> ZephyrError:
    cls = getattr(errors, body["class"], ZephyrError)
    error: ZephyrError = cls.__new__(cls)
    ZephyrError.__init__(error, body["message"], hint=body["hint"], resume=body["resume"])
    error.exit_code = body["code"]
    return error


def wait_for(path: Path, *, seconds: float, what: str, nap: Callable[[float], None] = time.sleep) -> None:
    """Returns once `path` is there. Raises TryAgain after `seconds`."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise errors.TryAgain(
                f"{what} did not appear at {path} within {seconds:.0f} s",
                hint="start the same command on machine 0, with the same store",
            )
        nap(1.0)
