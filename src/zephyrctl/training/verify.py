"""What is made sure of before a stopped run goes on: that its checkpoints fit the engine, and, where asked for, that
going on repeats what was: the steps before the newest checkpoint are made once more and compared bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zephyrctl.artifacts.durable import remove_tree
from zephyrctl.errors import StageRejected, UsageError
from zephyrctl.events import Note, silent
from zephyrctl.losses import make_loss
from zephyrctl.training import checkpoint
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.job import Job, keep_nothing
from zephyrctl.training.replay import compare_checkpoints

ENGINES = "engine.json"
"""In a run's scratch: who made the checkpoints. A list of what `_described` gives, each with `after`: the step of the
checkpoint that it went on from (0: none)."""
REPLAY = "replay"
"""The folder in a run's scratch where steps are repeated."""
_SHOWN = 3


def make_sure(job: Job, train: Callable[[Job], None]) -> None:
    """To be called just before `job` trains. `train` runs a job to its end, in its own `scratch`.

    Raises UsageError where the checkpoints cannot be read by this engine, StageRejected where steps are repeated
    (`verify_resume`) and come out otherwise, and whatever `train` raises.
    """
    require_same_engine(job.scratch, job.choice)
    if job.config.verify_resume:
        _verify(job, train)
    record_engine(job)


def require_same_engine(scratch: Path, choice: EngineChoice) -> None:
    """Raises UsageError where the checkpoints under `scratch` are in pieces that fit another engine, or another number
    of processes. `single` and `ddp` keep whole checkpoints and read each other's, over any number of processes."""
    step = max(_sealed(scratch), default=0)
    made = _made(scratch, step)
    if not step or made is None:
        return
    was, now = (str(made["engine"]), int(made["processes"])), (choice.name, choice.processes)
    whole = not choice.sharded and not EngineChoice(name=made["engine"]).sharded
    if whole or was == now:
        return
    raise UsageError(
        f"the checkpoint of step {step} is in pieces that only the same engine can read: {_said(*was)} made it,"
        f" {_said(*now)} would go on",
        hint=f"--engine {was[0]} --num-processes {was[1]} goes on from it; to start over instead, remove {scratch}",
    )


def record_engine(job: Job) -> None:
    """Writes down that checkpoints after the newest one are this job's."""
    after = max(_sealed(job.scratch), default=0)
    known = [one for one in _engines(job.scratch) if one["after"] < after]
    job.scratch.mkdir(parents=True, exist_ok=True)
    partial = job.scratch / (ENGINES + ".partial")
    partial.write_text(json.dumps([*known, _described(job) | {"after": after}], indent=1), encoding="utf-8")
    partial.replace(job.scratch / ENGINES)


def _said(engine: str, processes: int) -> str:
    return f"{engine} over {processes} process{'' if processes == 1 else 'es'}"


def _described(job: Job) -> dict[str, Any]:
    """All that may change the bits of a step without changing what is trained."""
    choice = {k: v for k, v in dataclasses.asdict(job.choice).items() if k not in ("name", "why", "machines")}
    return {"engine": job.choice.name, **choice, "rows_per_pass": job.plan.micro}


def _engines(scratch: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads((scratch / ENGINES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return found


def _made(scratch: Path, step: int) -> dict[str, Any] | None:
    """Who made the checkpoint of `step`."""
    found = [one for one in _engines(scratch) if one["after"] < step]
    return found[-1] if found else None


def _verify(job: Job, train: Callable[[Job], None]) -> None:
    """Repeats the steps between the two newest checkpoints, or says why not."""
    newest = checkpoint.newest(job.scratch)
    if newest.path is None:
        return
    before = _before(job.scratch, newest.step)
    reason = _why_not(job, newest.step, before)
    if reason is not None or before is None:
        job.emit(Note(f"nothing is replayed before step {newest.step}: {reason}"))
        return
    begun = time.monotonic()
    folder = job.scratch / REPLAY
    remove_tree(folder)
    _copy(before, folder / before.name)
    train(_again(job, folder, newest.step))
    found = compare_checkpoints(newest.path, folder / newest.path.name)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise StageRejected(
            f"{before.name}, replayed to step {newest.step}, does not give {newest.path.name} again:"
            f" {'; '.join(found[:_SHOWN])}{more}",
            hint=f"compare {folder} with it; without --verify-resume the run goes on, and may not be repeatable",
        )
    remove_tree(folder)
    count = newest.step - checkpoint.read_seal(before)["step"]
    seconds = time.monotonic() - begun
    job.emit(Note(f"replayed {count} steps to step {newest.step} in {seconds:.1f} s: the same bit for bit"))


def _sealed(scratch: Path) -> dict[int, Path]:
    """The finished checkpoints by step; whether their files are what they should be is not looked at."""
    found = {}
    for folder in scratch.glob("checkpoint-*"):
        try:
            found[int(checkpoint.read_seal(folder)["step"])] = folder
        except (OSError, ValueError):
            continue
    return found


def _before(scratch: Path, step: int) -> Path | None:
    """The newest usable checkpoint before `step`."""
    sealed = _sealed(scratch)
    earlier = (sealed[one] for one in sorted(sealed, reverse=True) if one < step)
    return next((folder for folder in earlier if checkpoint.fault(folder) is None), None)


def _why_not(job: Job, step: int, before: Path | None) -> str | None:
    """Why steps cannot be repeated, as a clause; None where they can."""
    if before is None:
        return "no earlier checkpoint is kept"
    if job.choice.machines > 1:
        return "the run is over several machines"
    if job.loss is not None and job.reference is None and make_loss(job.loss).needs_reference:
        return "the reference's log-probabilities are gone, and training starts anew"
    distance = step - checkpoint.read_seal(before)["step"]
    if distance > job.config.verify_resume:
        most = job.config.verify_resume
        return f"the checkpoint before is {distance} steps away, and {most} are to be replayed at most"
    made = {k: v for k, v in (_made(job.scratch, step) or {}).items() if k != "after"}
    now = _described(job)
    other = [name for name in now if made.get(name) != now[name]]
    if other:
        return (
            "it was made with other settings ("
            + ", ".join(f"{k} {made.get(k)}, now {now[k]}" for k in other)
            + ")"
        )
    return None


def _again(job: Job, folder: Path, step: int) -> Job:
    """The job in another scratch, up to `step`, telling nobody."""
    quietly: dict[str, Any] = {"save_steps": None, "keep_epochs": False, "verify_resume": 0, "report_to": []}
    config = job.config.model_copy(update=quietly)
    return dataclasses.replace(
        job, config=config, scratch=folder, stop_at=step, emit=silent, deliver=keep_nothing, verify_ref=0
    )


def _copy(source: Path, target: Path) -> None:
    """The same files under another name; their bytes are copied only where the disk knows no second name for a file."""

    def copied(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    shutil.copytree(source, target, copy_function=copied)
