"""One run of one program in a process of its own: the command lines of zephyrctl and TRL, settings alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMER = Path(__file__).parent / "peers" / "timed_training.py"
PATIENCE = 900
"""Seconds after which a run is given up."""
LORA = ["--set", "lora=true", "--set", "lora_r=16"]


@dataclass(frozen=True)
class Scene:
    """One model and its rows, and how long a run may take."""

    model: Path
    rows: Path
    length: int
    mean: float
    """Mean tokens of a row."""
    steps: int
    warm: int
    seconds: float
    context: float
    """Positions that a token attends to on average."""
    gpu: bool = False
    cap: float | None = None


@dataclass(frozen=True)
class Cell:
    """One program with one choice of settings."""

    who: str
    task: str
    label: str
    dtype: str = "bf16"
    packing: str = "none"
    batch: int = 8
    """Rows, or packs of rows, of an optimiser step; TRL's default."""
    micro: int | None = None
    """zephyrctl's rows of a pass, which do not change the result; None: as it chooses."""
    lora: bool = False
    nf4: bool = False


@dataclass
class Seen:
    """What the runs of a cell gave; `fault` where one did not end well."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    fault: str = ""

    @property
    def begun(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.runs or self.fault)


def run(scene: Scene, cell: Cell, seen: Seen) -> None:
    """One run in a process of its own; a fault is kept and ends the cell."""
    if seen.fault:
        return
    place = Path(tempfile.mkdtemp(dir=scene.rows.parent))
    argv = ours_argv(scene, cell, place) if cell.who == "zephyrctl" else trl_argv(scene, cell, place)
    spec = {"who": cell.who, "argv": argv, "out": str(place / "out.json"), "warm": scene.warm,
            "steps": scene.steps, "seconds": scene.seconds, "cap_gib": scene.cap}  # fmt: skip
    (place / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    alike = {"OMP_NUM_THREADS": cores, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1",
             "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_CACHE": str(place / "cache")}  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, str(TIMER), str(place / "spec.json")],
            env={**os.environ, **alike}, capture_output=True, text=True, errors="replace", timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        seen.fault = f"not done after {PATIENCE} s"
        return
    if done.returncode or not (place / "out.json").is_file():
        seen.fault = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])[-600:]
    else:
        seen.runs.append(json.loads((place / "out.json").read_text(encoding="utf-8")))
        seen.runs[-1]["argv"] = argv
    shutil.rmtree(place, ignore_errors=True)


def ours_argv(scene: Scene, cell: Cell, place: Path) -> list[str]:
    """The command line of zephyrctl. Loss is borne by all tokens, as in TRL's default, and no checkpoint is saved."""
    changed = {"dtype": cell.dtype, "save_steps": 10**6, "test_fraction": 0}
    if cell.task == "sft":
        changed |= {"loss_on": "all", "packing": cell.packing}
    if cell.micro:
        changed["micro_batch"] = cell.micro
    return [
        cell.task, "--init", str(scene.model), "--data", str(scene.rows / "train.jsonl"), "--store",
        str(place / "store"), "--epochs", "1", "--batch-size", str(cell.batch), "--max-length", str(scene.length),
        *(word for name, value in changed.items() for word in ("--set", f"{name}={value}")),
        *(LORA if cell.lora else []), *(["--set", "quantize=nf4"] if cell.nf4 else []),
    ]  # fmt: skip


def trl_argv(scene: Scene, cell: Cell, place: Path) -> list[str]:
    """The command line of `trl`: what is not named here is its default."""
    return [
        cell.task, "--model_name_or_path", str(scene.model), "--dataset_name", str(scene.rows), "--output_dir",
        str(place / "out"), "--max_length", str(scene.length), "--num_train_epochs", "1", "--report_to", "none",
        *([] if scene.gpu else ["--use_cpu"]),
        *(["--bf16", "False"] if cell.dtype == "fp32" else []),
        *(["--packing"] if cell.packing != "none" else []),
        *(["--use_peft", "--lora_r", "16", "--lora_alpha", "16", "--lora_target_modules", "all-linear",
           "--dtype", "bfloat16"] if cell.lora else []),
    ]  # fmt: skip
