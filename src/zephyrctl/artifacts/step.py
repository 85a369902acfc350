"""The frame of every stage: was this work done before, may I do it now, and what did it make."""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyrctl.artifacts import durable
from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.links import link_model
from zephyrctl.artifacts.lock import hold_or_refuse, try_hold
from zephyrctl.artifacts.manifest import InputRef, World
from zephyrctl.artifacts.ref import check_name
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.writer import Frame, Staging
from zephyrctl.config import StageConfig, step_key
from zephyrctl.errors import EnvironmentFault, TryAgain
from zephyrctl.events import Emit, Event, silent
from zephyrctl.project import Project

PARTIAL = "partial"
"""The count that marks an artifact of the rows finished so far; the step goes on after it."""


class Relay:
    """Passes events on to `outside`, and to the log of the step that is open, if one is."""

    def __init__(self, outside: Emit) -> None:
        self.outside = outside
        self.log: Emit = silent

    def __call__(self, event: Event) -> None:
        self.log(event)
        self.outside(event)


@dataclass(frozen=True)
class Work:
    """Where and how a stage works: the store, whom to tell, and what was asked of this run."""

    store: Store
    emit: Emit = silent
    again: bool = False
    dry_run: bool = False
    edition: str | None = None
    """The edition's name as manifests show it, such as `zephyr-7b/paper + lr`."""
    project: Project = field(default_factory=Project)
    """Endpoints, prices and limits of the project."""
    yes: bool = False
    """Whether any estimate is agreed to beforehand."""
    ask: Callable[[str], bool] | None = None
    """Puts a yes-or-no question to the person at the terminal; None where nobody sits there."""

    def __post_init__(self) -> None:
        # stages tell `work.emit`; what they tell while a step is open also goes into the log kept with it
        if not isinstance(self.emit, Relay):
            object.__setattr__(self, "emit", Relay(self.emit))


@dataclass(frozen=True)
class StepResult:
    """What a step made, now or before (`already`). `ref` and `artifact` are None only for a dry run and a pilot,
    which leave what they found out in `plan`."""

    ref: str | None
    artifact: Artifact | None
    already: bool = False
    sides: dict[str, str] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    """What is printed where no artifact was wanted."""


def digests_by_role(inputs: Sequence[InputRef]) -> dict[str, str]:
    """The digests that enter a step key: by role, or by `role.0`, `role.1` … where a role has several."""
    count = collections.Counter(i.role for i in inputs)
    seen: collections.Counter[str] = collections.Counter()
    digests = {}
    for item in inputs:
        many = count[item.role] > 1
        digests[f"{item.role}.{seen[item.role]}" if many else item.role] = item.digest
        seen[item.role] += 1
    return digests


class Step:
    """One piece of work with a name: known by its key, done once, by one process at a time, and resumed after
    a crash.
    """

    def __init__(
        self,
        work: Work,
        config: StageConfig,
        *,
        name: str,
        kind: str,
        inputs: Sequence[InputRef],
        world: World,
    ) -> None:
        self.work = work
        self.config = config
        self.name = check_name(name)
        self.kind = kind
        self.inputs = tuple(inputs)
        self.world = world
        self.key = step_key(config, digests_by_role(inputs))
        self.folder = work.store.work / f"{config.stage}-{self.key[:16]}"

    def done(self) -> StepResult | None:
        """What this step made before under this name, checked; None when it has to work (also with `again`).

        Raises IntegrityError when it was made and is damaged now.
        """
        if self.work.again:
            return None
        artifact = self._made()
        if artifact is None:
            return None
        artifact.check()
        # a crash may have come between the commit and what follows it
        self._tidy(artifact)
        if artifact.kind == "model":
            for name in (self.name, *artifact.manifest.sides):
                with contextlib.suppress(EnvironmentFault):
                    link_model(self.work.store, name, self.work.emit)
        return StepResult(str(artifact.ref), artifact, True, dict(artifact.manifest.sides))

    def _made(self) -> Artifact | None:
        """What this step made, finished: a partial artifact does not stand for it."""
        artifact = self.work.store.find_step(self.name, self.key)
        return None if artifact is None or artifact.manifest.counts.get(PARTIAL) else artifact

    @contextlib.contextmanager
    def open(self) -> Iterator[Staging]:
        """The staging of this step, held by this process alone until the block ends; commit inside the block.

        Raises Locked, naming process and host, while another process works on it; EnvironmentFault when the
        store cannot be written; TryAgain when another process finished it a moment ago.
        """
        store = self.work.store
        store.prepare()
        with contextlib.ExitStack() as stack:
            with durable.faults(self.folder):
                durable.make_dir(self.folder)
                _same_device(store.root, self.folder)
                stack.enter_context(
                    hold_or_refuse(self.folder / "lock", f"'{self.name}' ({self.config.stage})")
                )
                if not self.work.again and self._made() is not None:
                    raise TryAgain(
                        f"another process has just finished {self.name}",
                        hint="run the same command again to get its result",
                    )
                frame = self._frame(self._attempt())
            staging = Staging(frame, self.name, self.kind)
            stack.enter_context(self._logging(staging))
            try:
                yield staging
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                    raise durable.fault(error, self.folder) from error
                raise
            finally:
                staging.abandon()
                if staging.artifact is not None:
                    with contextlib.suppress(OSError):
                        durable.remove_tree(self.folder, last="lock")

    def result(self, artifact: Artifact) -> StepResult:
        """The result that says `artifact` was made just now."""
        return StepResult(str(artifact.ref), artifact, False, dict(artifact.manifest.sides))

    @contextlib.contextmanager
    def _logging(self, staging: Staging) -> Iterator[None]:
        relay = self.work.emit
        assert isinstance(relay, Relay)
        before, relay.log = relay.log, staging.log
        try:
            yield
        finally:
            relay.log = before

    def _frame(self, attempt: str) -> Frame:
        return Frame(
            store=self.work.store,
            config=self.config,
            inputs=self.inputs,
            world=self.world,
            key=self.key,
            edition=self.work.edition,
            attempt=attempt,
            folder=self.folder,
            again=self.work.again,
            emit=self.work.emit,
        )

    def _attempt(self) -> str:
        """The attempt to go on with: the one whose traces are here, unless it was finished and only its
        traces are left.
        """
        found = _read_attempt(self.folder)
        if found is not None:
            identity, name = found
            earlier = self.work.store.find_step(name, self.key)
            finished = earlier is not None and earlier.manifest.provenance.get("attempt") == identity
            if not finished:
                return identity
            for child in sorted(self.folder.iterdir()):
                if child.is_dir() and not child.is_symlink():
                    durable.remove_tree(child)
                elif child.name not in ("lock", "owner.json"):
                    durable.calls.unlink(os.fspath(child))
        identity = uuid.uuid4().hex
        body = json.dumps({"id": identity, "name": self.name})
        durable.replace(self.folder / "attempt.json", body.encode())
        return identity

    def _tidy(self, artifact: Artifact) -> None:
        found = _read_attempt(self.folder)
        if found is None or found[0] != artifact.manifest.provenance.get("attempt"):
            return
        handle = try_hold(self.folder / "lock")
        if handle is None:
            return
        try:
            with contextlib.suppress(OSError):
                durable.remove_tree(self.folder, last="lock")
        finally:
            os.close(handle)


def _read_attempt(folder: Path) -> tuple[str, str] | None:
    try:
        body = json.loads((folder / "attempt.json").read_bytes())
        return str(body["id"]), check_name(str(body["name"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _same_device(root: Path, folder: Path) -> None:
    if root.stat().st_dev != folder.stat().st_dev:
        raise EnvironmentFault(
            f"{folder} is on another disk than {root}, so a finished result could not be moved in one step",
            hint="keep .work inside the store on one disk",
        )
