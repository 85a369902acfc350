"""What a machine has that training depends on: GPUs and their memory, cores, packages, a compiler.

`this_machine` looks; `parse_hardware` takes a description such as `16xA100-80GB`, so that a run can be planned on a
laptop for machines that are elsewhere. Everything that decides upon it is a pure function of `Hardware`.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from zephyrctl.errors import UsageError
from zephyrctl.training.flops import names_gpu

GIB = 1024**3
OPTIONAL = ("deepspeed", "flash_attn", "bitsandbytes")
"""Packages of extras that change how training can run."""

_KNOWN_MEMORY = {
    "B200": 180, "H200": 141, "H100": 80, "H800": 80, "GH200": 96, "A100": 80, "A800": 80, "L40S": 48, "A6000": 48,
    "A40": 48, "L40": 48, "A10": 24, "L4": 24, "4090": 24, "3090": 24, "5090": 32, "V100": 32, "MI300X": 192,
}  # fmt: skip
"""Memory (GB, as the makers count) of GPUs that are named without it; the larger version where there are two."""
_MOST = 100_000
"""GPUs that a description may have."""


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name as the driver gives it, its memory in bytes."""

    name: str
    memory: int


@dataclass(frozen=True)
class Hardware:
    """One machine, or several of one kind (`gpus` are those of all of them where the description says so)."""

    gpus: tuple[Gpu, ...] = ()
    memory: int | None = None
    """Bytes of main memory that a new process can have; None where it cannot be told."""
    cores: int = 1
    packages: frozenset[str] = frozenset()
    """Which of `OPTIONAL` are installed."""
    compiler: bool = True
    """Whether there is a C++ compiler, which DeepSpeed needs on a CPU."""
    described: bool = False
    """Whether this was described and not looked at."""

    @property
    def gpu_memory(self) -> int | None:
        """Bytes of the smallest GPU; None without one."""
        return min((gpu.memory for gpu in self.gpus), default=None)

    @property
    def summary(self) -> str:
        """`8 x NVIDIA H100 80GB HBM3 (79 GiB)`, or `CPU, 8 cores, 30 GiB free`."""
        if self.gpus:
            memory = self.gpu_memory or 0
            return f"{len(self.gpus)} x {self.gpus[0].name} ({memory / GIB:.0f} GiB)"
        free = "" if self.memory is None else f", {self.memory / GIB:.0f} GiB free"
        return f"CPU, {self.cores} core{'s' if self.cores != 1 else ''}{free}"


def this_machine() -> Hardware:
    """What this machine has. Opens CUDA only where there is a driver; never raises."""
    return Hardware(
        gpus=_gpus(),
        memory=available_bytes(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        packages=installed(),
        compiler=any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "c++")),
    )


def installed() -> frozenset[str]:
    """Which of `OPTIONAL` can be imported here."""
    return frozenset(name for name in OPTIONAL if find_spec(name) is not None)


def parse_hardware(text: str) -> Hardware:
    """Machines from words: `16xA100-80GB`, `8xH100`, `1x24GB`. All optional packages are taken to be there.

    Raises UsageError where it cannot be read or the memory is not known.
    """
    found = re.fullmatch(r"\s*(\d+)\s*[xX*]\s*(.+?)\s*", text)
    count, name = (int(found[1]), found[2]) if found else (1, text.strip())
    size = re.search(r"(\d+(?:\.\d+)?)\s*(GB|GiB|G)$", name, re.IGNORECASE)
    gigabytes = float(size[1]) if size else _known_memory(name)
    if not 1 <= count <= _MOST or not gigabytes:
        raise UsageError(
            f"'{text}' does not say which GPUs: a number and a kind or a memory",
            hint="for example 16xA100-80GB, 8xH100 or 1x24GB",
        )
    unit = 10**9 if size is None or size[2].upper() == "GB" else GIB
    gpu = Gpu(name, int(gigabytes * unit))
    return Hardware((gpu,) * count, None, 1, frozenset(OPTIONAL), True, described=True)


def _known_memory(name: str) -> float | None:
    """The memory (GB) of the GPU that is named so; None for one that is not known."""
    return next((size for known, size in _KNOWN_MEMORY.items() if names_gpu(known, name)), None)


def available_bytes() -> int | None:
    """Main memory that a new process can have on this machine, within its container's limit; None where it cannot be
    told."""
    found: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((group / "memory.current").read_text(encoding="ascii"))
            found.append(max(0, int(limit) - used))
    except (OSError, ValueError):
        pass
    if not found:
        try:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (OSError, ValueError):
            return None
    return min(found)


def _gpus() -> tuple[Gpu, ...]:
    """The CUDA devices that this process may use, without opening one where there is no driver."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return ()
    try:
        import torch
    except ImportError:
        return ()
    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple(Gpu(str(p.name), int(p.total_memory)) for p in found)
