"""`zephyrctl doctor`: what this machine has, what it lacks, and how to get it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zephyrctl.cli.options import Session, common

if TYPE_CHECKING:
    from zephyrctl.training.hardware import Hardware

State = Literal["ok", "absent", "fault"]
_HIDDEN = ("dev", "demo")
_LITTLE = 5 * 1024**3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `absent` is for a part that only some commands need, `fault` stops work."""

    what: str
    state: State
    value: str
    fix: str = ""


@common
def doctor_cli(
    *,
    session: Session,
    needs: Annotated[
        list[str] | None,
        typer.Option(
            "--need", metavar="EXTRA", help="Count it as a fault where this extra is missing; repeatable."
        ),
    ] = None,
) -> None:
    """Python, packages, GPUs, compiler, store, disk and keys of this machine, each with the fix where one is needed.

    Keys are never shown. Exit code 3 where something stops zephyrctl from working, else 0.

    \b
    zephyrctl doctor
    zephyrctl doctor --need deepspeed --json
    """
    from zephyrctl.cli.console import Console, plain_table
    from zephyrctl.errors import EnvironmentFault, UsageError
    from zephyrctl.events import Warning_
    from zephyrctl.training.hardware import this_machine

    extras = _extras()
    named = sorted(filter(None, extras))
    unknown = sorted(set(needs or []) - set(named))
    if unknown:
        raise UsageError(f"no extra '{unknown[0]}'", hint="there are: " + ", ".join(named))
    machine = this_machine()
    found = [
        _python(),
        *_packages(extras, needs or []),
        *_machine(machine),
        *_store(session.store_root),
        *_keys(session),
    ]
    faults = [finding for finding in found if finding.state == "fault"]
    console = Console(session)
    console.result(
        plain_table(
            ("what", "state", "value", "fix"), tuple((f.what, f.state, f.value, f.fix) for f in found)
        ),
        {"ok": not faults, "findings": [vars(finding) for finding in found]},
    )
    for fault in faults:
        console(Warning_(f"{fault.what}: {fault.value}" + (f"; {fault.fix}" if fault.fix else "")))
    if faults:
        raise typer.Exit(EnvironmentFault.exit_code)


def _python() -> Finding:
    version = platform.python_version()
    right = sys.version_info >= (3, 11)
    return Finding("python", "ok" if right else "fault", version, "" if right else "Python 3.11 or newer")


def _extras() -> dict[str, list[str]]:
    """What each extra asks for: `package>=version`, from the package's own metadata; the core's under an empty name."""
    found: dict[str, list[str]] = {}
    for line in metadata.requires("zephyrctl") or []:
        wanted, _, condition = line.partition(";")
        named = re.search(r"extra\s*==\s*['\"]([^'\"]+)", condition)
        extra = named[1] if named else ""
        if extra not in _HIDDEN:
            found.setdefault(extra, []).append(wanted.strip())
    return found


def _packages(extras: dict[str, list[str]], needs: list[str]) -> list[Finding]:
    """Whether each extra is complete, and in versions that are not too old."""
    found = []
    for extra, wanted in sorted(extras.items()):
        lacks = [text for line in wanted if (text := _lacking(line))]
        name = extra or "core packages"
        if not lacks:
            found.append(Finding(name, "ok", f"complete, {len(wanted)} package{'s' * (len(wanted) != 1)}"))
            continue
        state: State = "fault" if not extra or extra in needs else "absent"
        command = f"pip install 'zephyrctl[{extra}]'" if extra else "pip install zephyrctl"
        found.append(Finding(name, state, ", ".join(lacks), command))
    return found + [
        Finding(f"  {name}", "ok", version) for name, version in _versions(extras.get("train", []))
    ]


def _lacking(requirement: str) -> str | None:
    """What is wrong with a required package: missing, or older than it must be; None where it is there."""
    name = _name(requirement)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is missing"
    least = re.search(r">=\s*([\d.]+)", requirement)
    if least and _number(version) < _number(least[1]):
        return f"{name} {version} is older than {least[1]}"
    return None


def _versions(wanted: list[str]) -> list[tuple[str, str]]:
    """The packages that are there, with their versions: what a report of a fault should name."""
    found = []
    for name in sorted(map(_name, wanted)):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append((name, metadata.version(name)))
    return found


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found[0] if found else requirement


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _machine(machine: Hardware) -> list[Finding]:
    from zephyrctl.training.flops import peak_flops

    threads = os.environ.get("OMP_NUM_THREADS")
    memory = "not known" if machine.memory is None else f"{machine.memory / 1024**3:.1f} GiB free"
    found = [
        Finding("cores", "ok", f"{machine.cores}" + (f", OMP_NUM_THREADS={threads}" if threads else "")),
        Finding("memory", "ok", memory),
        _gpu(machine),
    ]
    if machine.gpus:
        peak = peak_flops(machine.gpus[0].name)
        shown = (
            "not in the table: no MFU, no estimate of time" if peak is None else f"{peak / 1e12:.0f} TFLOP/s"
        )
        found.append(Finding("peak in bfloat16", "ok" if peak else "absent", shown))
        flash = "flash_attn" in machine.packages
        fix = "" if flash else "pip install 'zephyrctl[flash-attn]' (needs nvcc); without it sdpa is used"
        found.append(
            Finding(
                "FlashAttention", "ok" if flash else "absent", "installed" if flash else "not installed", fix
            )
        )
    else:
        fix = "" if machine.compiler else "install g++ (DeepSpeed on a CPU builds an extension)"
        value = "found" if machine.compiler else "not found"
        found.append(Finding("C++ compiler", "ok" if machine.compiler else "absent", value, fix))
    return found


def _gpu(machine: Hardware) -> Finding:
    if machine.gpus:
        return Finding("GPUs", "ok", machine.summary)
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return Finding("GPUs", "absent", "none: training runs on the CPU")
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Finding("GPUs", "absent", "a driver is there, torch is not", "pip install 'zephyrctl[train]'")
    if torch.endswith("+cpu"):
        return Finding("GPUs", "fault", f"a driver is there, but torch {torch} is a build without CUDA",
                       "install torch for CUDA: https://pytorch.org/get-started/locally")  # fmt: skip
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    why = f"CUDA_VISIBLE_DEVICES={hidden}" if hidden is not None else f"torch {torch} sees none of them"
    return Finding(
        "GPUs", "absent", f"a driver is there, but {why}", "nvidia-smi shows whether the driver works"
    )


def _store(root: Path) -> list[Finding]:
    """Whether the store can be written, and how much is free there. Nothing is made."""
    from zephyrctl.training.outlook import free_bytes

    place = root.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    shown = str(root) + ("" if root.exists() else " (not made yet)")
    found = [
        Finding("store", "ok", shown)
        if writable
        else Finding("store", "fault", f"{place} cannot be written", "--store DIR, or ZEPHYRCTL_STORE")
    ]
    free = free_bytes(root)
    if free is not None:
        full = free < _LITTLE
        value = f"{free / 1024**3:.1f} GiB free"
        found.append(
            Finding("disk", "absent" if full else "ok", value, "free space: models take more" if full else "")
        )
    return found


def _keys(session: Session) -> list[Finding]:
    """Which keys are set; what they are is never looked at."""
    from zephyrctl.providers.hosted.endpoints import VENDORS

    names = [vendor.key_variable for vendor in VENDORS.values()]
    names += [section.key_env for section in session.project.endpoints.values() if section.key_env]
    found = []
    for name in dict.fromkeys([*names, "HF_TOKEN"]):
        there = any(os.environ.get(variable) for variable in (name, f"{name}_FILE"))
        found.append(Finding(name, "ok" if there else "absent", "set" if there else "not set"))
    return found
