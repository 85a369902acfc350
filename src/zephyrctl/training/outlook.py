"""What a run will be, said before it begins: rows, packs, steps, memory, time, disk, and what is missing for it.

`look_ahead` puts the estimates together. Nothing here touches a GPU, loads a model or writes a file.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zephyrctl.errors import EnvironmentFault, MissingExtra, ZephyrError
from zephyrctl.training.choosing import choose_engine, choose_micro, device_bytes, fits, require_fit
from zephyrctl.training.costs import Disk, Time, estimate_disk, estimate_time
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.footprint import Shape
from zephyrctl.training.hardware import GIB, OPTIONAL, Hardware, parse_hardware
from zephyrctl.training.lengths import Workload, plan_steps, share_of_padding
from zephyrctl.training.memory import Estimate, estimate_memory
from zephyrctl.training.plan import Plan
from zephyrctl.training.settings import TrainingConfig

_PLACES = ("1x24GB", "1x80GB", "8x80GB", "16x80GB")
"""GPUs for which memory is shown where none was named and none is here."""


@dataclass(frozen=True)
class Assumptions:
    """What the user states about speed; None takes the usual."""

    mfu: float | None = None
    disk: float | None = None
    """Bytes a second."""


@dataclass(frozen=True)
class Missing:
    """Something that the run lacks here, and the fix."""

    what: str
    fix: str

    @classmethod
    def of(cls, error: ZephyrError) -> Missing:
        return cls(error.message, error.hint or "")


@dataclass(frozen=True)
class Place:
    """The run on some GPUs."""

    name: str
    choice: EngineChoice
    micro: int
    memory: Estimate
    fits: bool


@dataclass(frozen=True)
class Outlook:
    """Everything known of a run beforehand. `memory`, `time` and `disk` are None for a model that cannot be counted."""

    config: TrainingConfig
    shape: Shape
    hardware: Hardware
    work: Workload
    plan: Plan
    choice: EngineChoice
    padding: float
    memory: Estimate | None
    room: int | None
    """Bytes of each process's device; None where it cannot be told."""
    time: Time | None
    disk: Disk | None
    free: int | None
    """Free bytes where the store is."""
    missing: tuple[Missing, ...] = ()
    places: tuple[Place, ...] = ()
    """The same run elsewhere, where it does not fit here."""
    checks: tuple[tuple[str, str], ...] = ()
    """What else was checked, and with which outcome."""

    def require_ready(self) -> None:
        """Raises EnvironmentFault with the first thing that is missing."""
        for lack in self.missing:
            raise EnvironmentFault(lack.what, hint=lack.fix)


def look_ahead(
    config: TrainingConfig,
    shape: Shape,
    hardware: Hardware,
    work: Workload,
    *,
    store: Path | None = None,
    plan: Plan | None = None,
    assumptions: Assumptions = Assumptions(),
    checks: Sequence[tuple[str, str]] = (),
) -> Outlook:
    """The outlook of training `work` with `config` on `hardware`, its model of `shape`.

    `plan` is the one that will be trained by, where there is one; `store` is the folder whose disk is written to.
    Raises UsageError for settings that contradict each other; what the hardware lacks is in `missing`.
    """
    choice, lacks = _choose(config, shape, hardware)
    micro = choose_micro(config, shape, choice, hardware)
    plan = plan or plan_steps(work, config, micro)
    micro = plan.micro
    try:
        require_fit(config, shape, choice, hardware, micro=micro)
        misfit = False
    except EnvironmentFault as error:
        lacks.append(Missing.of(error))
        misfit = True
    disk = estimate_disk(config, shape, choice, speed=assumptions.disk)
    free = None if store is None or hardware.described else free_bytes(store)
    if disk is not None and free is not None and disk.needed > free:
        lacks.append(
            Missing(
                f"the run writes up to {disk.needed / GIB:.1f} GiB, {free / GIB:.1f} GiB are free at the store",
                "free space, or point --store elsewhere",
            )
        )
    return Outlook(
        config=config,
        shape=shape,
        hardware=hardware,
        work=work,
        plan=plan,
        choice=choice,
        padding=0.0
        if choice.attention == "flash_attention_2"
        else share_of_padding(work, plan, choice.processes),
        memory=estimate_memory(config, shape, choice, micro=micro),
        room=device_bytes(choice, hardware),
        time=estimate_time(config, shape, choice, hardware, work, plan, mfu=assumptions.mfu),
        disk=disk,
        free=free,
        missing=tuple(lacks),
        places=_elsewhere(config, shape) if misfit and not hardware.gpus else (),
        checks=tuple(checks),
    )


def free_bytes(folder: Path) -> int | None:
    """Free bytes of the disk that `folder` is on, or will be on; None where that cannot be told."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def _choose(config: TrainingConfig, shape: Shape, hardware: Hardware) -> tuple[EngineChoice, list[Missing]]:
    """The engine, as if every package were there, and the packages that are not."""
    try:
        return choose_engine(config, shape, hardware), []
    except MissingExtra as error:
        complete = replace(hardware, packages=frozenset(OPTIONAL))
        return choose_engine(config, shape, complete), [Missing.of(error)]


def _elsewhere(config: TrainingConfig, shape: Shape) -> tuple[Place, ...]:
    """The same run on common GPUs, with everything left to choose that depends on them."""
    free = config.model_copy(
        update={
            "num_processes": None,
            "num_machines": 1,
            "machine_rank": 0,
            "engine": "auto",
            "offload": False,
        }
    )
    found = []
    for name in _PLACES:
        there = parse_hardware(name)
        if len(there.gpus) > config.batch_size:
            continue
        choice = choose_engine(free, shape, there)
        micro = choose_micro(free, shape, choice, there)
        memory = estimate_memory(free, shape, choice, micro=micro)
        if memory is not None:
            found.append(Place(name, choice, micro, memory, fits(free, shape, choice, there, micro=micro)))
    return tuple(found)
