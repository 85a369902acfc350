"""The servers of models on this machine: started together, sharing the GPUs, stopped together.

They listen on 127.0.0.1 alone, behind a random key. A keeper process (`keeper.py`) holds each of them, so that none
outlives this process, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from zephyrctl.errors import EnvironmentFault
from zephyrctl.project import VllmSection
from zephyrctl.redact import redact, register

_GRACE_SECONDS = 10.0
"""What a server has to end in order before it is killed."""
_LOOK_SECONDS = 0.2
_MEMORY = 0.9
"""The share of a GPU's memory that vLLM takes where it has the GPU to itself."""
_TAIL_LINES = 12
_SECRET = re.compile(r"(_KEY|_KEY_FILE|_TOKEN|_SECRET|PASSWORD)$", re.IGNORECASE)
_GPU_LINE = re.compile(r"^GPU (\d+):", re.MULTILINE)


class CalledOff(Exception):
    """The start was given up because somebody asked for it; no server is left."""


@dataclass(frozen=True)
class Share:
    """The GPUs of one model, one server on each group, and the share of their memory that is its own."""

    groups: tuple[str, ...]
    memory: float


@dataclass(frozen=True)
class _Server:
    keeper: subprocess.Popen[bytes]
    port: int
    log: Path


class Fleet:
    """The servers of one model, shared by all who ask it. `join` gives one, `leave` gives it back.

    `name` = what requests call the model; `hidden` = variables that the servers do not see, beside all that look
    like secrets; `logs` = the folder for what they write (default: a temporary one, kept where something failed).
    """

    def __init__(
        self, folder: Path, name: str, section: VllmSection, *, hidden: frozenset[str], logs: Path | None
    ) -> None:
        self.folder = folder
        self.name = name
        self.section = section
        self.key = secrets.token_urlsafe(24)
        register(self.key)
        self.users = 0
        self._hidden = hidden
        self._logs = logs
        self._temporary: Path | None = None
        self._servers: list[_Server] = []
        self._share: Share | None = None
        """What the servers that run were started with; None while none is ready."""
        self._calls = 0
        self._turn = threading.Condition()

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses to balance calls over."""
        return tuple(f"http://127.0.0.1:{server.port}/v1" for server in self._servers)

    @property
    def up(self) -> bool:
        """Whether the servers can be asked."""
        return self._share is not None

    def enter(self) -> bool:
        """Begin a call; False where `start` has to come first. After it, `exit` ends the call."""
        with self._turn:
            if not self.up:
                return False
            self._calls += 1
            return True

    def exit(self) -> None:
        """End a call that `enter` began."""
        with self._turn:
            self._calls -= 1
            self._turn.notify_all()

    def start(self, called_off: Callable[[], bool] = lambda: False) -> None:
        """Start the servers and wait until all can be asked; nothing where they run already.

        Models that came in between share the GPUs anew: others stop first, when their calls have ended.
        Raises EnvironmentFault with the last lines of the log where a server ends or is not ready in time,
        CalledOff when `called_off` says so; then none is left running.
        """
        # One model after the other: each measures how much memory is free while it starts.
        with _starting:
            if self.up:
                return
            shares = _shares(self.section)
            for fleet, share in shares.items():
                if fleet is not self and fleet._share not in (None, share):
                    fleet._drain(called_off)
            try:
                self._launch(shares[self])
                self._wait(called_off)
            except BaseException:
                self.stop()
                raise
            self._share = shares[self]

    def check(self) -> None:
        """Nothing, while every server runs. Raises EnvironmentFault with the last lines of one that ended."""
        for server in list(self._servers):
            code = server.keeper.poll()
            if code is not None:
                raise self._fault(server, f"ended with exit code {code}")

    def stop(self) -> None:
        """Stop the servers and wait until they and their memory are gone; `start` begins anew."""
        self._share = None
        servers, self._servers = self._servers, []
        fine = all(server.keeper.poll() is None for server in servers)
        for server in servers:
            assert server.keeper.stdin is not None
            with contextlib.suppress(OSError):
                server.keeper.stdin.close()
        for server in servers:
            server.keeper.wait()
        if fine and self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def _drain(self, called_off: Callable[[], bool]) -> None:
        with self._turn:
            self._share = None
            while self._calls:
                self._turn.wait(_LOOK_SECONDS)
                if called_off():
                    raise CalledOff
        self.stop()

    def _launch(self, share: Share) -> None:
        if self._logs is None and self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="zephyrctl-vllm-"))
        logs = self._logs or self._temporary
        assert logs is not None
        logs.mkdir(parents=True, exist_ok=True)
        for place, (gpus, port) in enumerate(zip(share.groups, _free_ports(len(share.groups)), strict=True)):
            log = logs / f"vllm-{self.name[-12:]}-{place}.log"
            command = serve_command(self.section, self.folder, self.name, port, share.memory)
            keeper = [sys.executable, "-P", "-m", "zephyrctl.providers.local.keeper", str(_GRACE_SECONDS)]
            with log.open("ab") as out:
                process = subprocess.Popen(
                    [*keeper, *command],
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=server_environment(os.environ, self._hidden)
                    | {"CUDA_VISIBLE_DEVICES": gpus, "VLLM_API_KEY": self.key},
                )
            self._servers.append(_Server(process, port, log))

    def _wait(self, called_off: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.section.startup_seconds
        waiting = list(self._servers)
        while waiting := [server for server in waiting if not _healthy(server.port)]:
            self.check()
            if called_off():
                raise CalledOff
            if time.monotonic() > deadline:
                limit = f"{self.section.startup_seconds:g} s (vllm.startup_seconds)"
                raise self._fault(waiting[0], f"was not ready within {limit}")
            time.sleep(_LOOK_SECONDS)

    def _fault(self, server: _Server, what: str) -> EnvironmentFault:
        return EnvironmentFault(
            f"vLLM for {self.folder} {what}; it wrote last:\n{_tail(server.log)}",
            hint=f"the whole log is {server.log}; `vllm:` in zephyrctl.yaml says how it is started",
        )


_fleets: list[Fleet] = []
"""All fleets with users, in the order in which they came."""
_roster = threading.RLock()
"""Reentrant: a provider that nobody needs any more may be forgotten, and leave, at any moment."""
_starting = threading.Lock()


def join(
    folder: Path,
    name: str,
    section: VllmSection,
    *,
    hidden: frozenset[str] = frozenset(),
    logs: Path | None = None,
) -> Fleet:
    """The fleet of a model, with one user more; nothing is started yet."""
    with _roster:
        for fleet in list(_fleets):
            if (fleet.name, fleet.section) == (name, section):
                break
        else:
            fleet = Fleet(folder, name, section, hidden=hidden, logs=logs)
            _fleets.append(fleet)
        fleet.users += 1
        return fleet


def leave(fleet: Fleet) -> None:
    """One user less; with the last one the servers stop. Returns when their memory is free."""
    with _roster:
        fleet.users -= 1
        last = fleet.users == 0
        if last:
            _fleets.remove(fleet)
    if last:
        fleet.stop()


def _shares(section: VllmSection) -> dict[Fleet, Share]:
    with _roster:
        fleets = list(_fleets)
    groups = gpu_groups(section, os.environ)
    return {fleet: share_out(groups, len(fleets), place) for place, fleet in enumerate(fleets)}


def share_out(groups: Sequence[str], models: int, place: int) -> Share:
    """What the model at `place` of `models` gets: groups of its own, or a part of one where there are fewer
    groups than models."""
    if models <= len(groups):
        return Share(tuple(groups[place::models]), 1.0)
    group = place % len(groups)
    return Share((groups[group],), 1.0 / len(range(group, models, len(groups))))


def gpu_groups(section: VllmSection, environment: Mapping[str, str]) -> list[str]:
    """The GPUs as `CUDA_VISIBLE_DEVICES` names them, `tensor_parallel` in each group; one empty group where there
    are none.

    The project file decides, then what this process may see, then what nvidia-smi finds. Raises EnvironmentFault
    where there are fewer than one group needs.
    """
    if section.gpus is not None:
        gpus = [str(number) for number in section.gpus]
    elif "CUDA_VISIBLE_DEVICES" in environment:
        named = (part.strip() for part in environment["CUDA_VISIBLE_DEVICES"].split(","))
        gpus = [part for part in named if part and part != "-1"]
    else:
        gpus = _found_gpus()
    if not gpus:
        return [""]
    size = section.tensor_parallel
    whole = len(gpus) // size
    if not whole:
        raise EnvironmentFault(
            f"vllm.tensor_parallel is {size}, but there are only {len(gpus)} GPUs",
            hint="lower tensor_parallel, or name more GPUs under vllm.gpus in zephyrctl.yaml",
        )
    return [",".join(gpus[group * size : (group + 1) * size]) for group in range(whole)]


def _found_gpus() -> list[str]:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return _GPU_LINE.findall(done.stdout)


def serve_command(section: VllmSection, folder: Path, name: str, port: int, memory: float) -> list[str]:
    """The command line of one server. Arguments of the project file come last, so that they win."""
    command = [*section.command, "serve", str(folder.resolve())]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name]
    # Otherwise it would add sampling settings of its own from the model's folder to every request.
    command += ["--generation-config", "vllm"]
    if section.tensor_parallel > 1:
        command += ["--tensor-parallel-size", str(section.tensor_parallel)]
    if memory < 1.0:
        command += ["--gpu-memory-utilization", f"{_MEMORY * memory:.3f}"]
    if not _has_template(folder):
        template = resources.files("zephyrctl.chat").joinpath("templates/zephyr.jinja")
        command += ["--chat-template", str(template)]
    return [*command, *section.args]


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        return '"chat_template"' in (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def server_environment(environment: Mapping[str, str], hidden: frozenset[str]) -> dict[str, str]:
    """What a server sees of our environment: no keys, no tokens; and it reports its use to nobody."""
    seen = {
        name: value
        for name, value in environment.items()
        if not _SECRET.search(name) and name.removesuffix("_FILE") not in hidden
    }
    return {**seen, "VLLM_NO_USAGE_STATS": "1"}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _healthy(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, ValueError):
        return False


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return redact("\n".join(f"    {line[:300]}" for line in lines)) or "    (nothing)"
    return "    (nothing)"
