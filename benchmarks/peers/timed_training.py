"""One training run under a stopwatch: `timed_training.py SPEC.json`.

The run is the program's own: `zephyrctl sft|dpo …` through its command line, or the script that `trl sft|dpo` starts.
Both train through transformers' Trainer, so one stopwatch fits both: it counts, for every forward pass, the rows, the
positions and the tokens (or pairs) that bear loss, and takes the time (of the clock, and of all processors together)
from the end of one optimiser step to the end of the next - data, collation, logging and all. After the last step that
is wanted the numbers are written and the process ends, without saving a model.

The spec: `who` (zephyrctl or trl), `argv`, `out` (a JSON file), `warm` (steps that are not counted), `steps` and
`seconds` (whichever comes first ends the run), `cap_gib` (GPU memory the process may take; null for all).
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import time
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GIB = 1024**3


@dataclass
class Stopwatch:
    """What is counted while a trainer runs."""

    spec: dict[str, Any]
    now: dict[str, Any] = field(default_factory=lambda: {"passes": [], "counted": 0, "rows": 0})
    steps: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    ended: float = 0.0
    used: float = 0.0

    def saw(self, inputs: dict[str, Any]) -> None:
        """One forward pass is about to begin."""
        rows, width = inputs["input_ids"].shape
        self.now["passes"].append([int(rows), int(width)])
        pairs = len(inputs["token_counts"]) // 2 if "token_counts" in inputs else 0
        if "targets" in inputs:  # zephyrctl's pass
            tokens = int(inputs["targets"].numel())
        elif "labels" in inputs:
            tokens = int((inputs["labels"][:, 1:] != -100).sum())
        else:  # TRL's DPO: chosen answers above, rejected below
            tokens, pairs = int(inputs["completion_mask"].sum()), int(rows) // 2
        self.now["counted"] += tokens
        self.now["rows"] += pairs

    def begin(self) -> None:
        """The first step is about to begin."""
        self.ended, self.used = time.perf_counter(), time.process_time()

    def step(self) -> None:
        """An optimiser step has ended."""
        settle()
        end, used = time.perf_counter(), time.process_time()
        self.steps.append({"seconds": end - self.ended, "cpu_seconds": used - self.used, **self.now})
        self.now, self.ended, self.used = {"passes": [], "counted": 0, "rows": 0}, end, used
        measured = self.steps[self.spec["warm"] :]
        enough = len(self.steps) >= self.spec["steps"]
        if enough or (measured and sum(step["seconds"] for step in measured) >= self.spec["seconds"]):
            self.finish()

    def finish(self) -> None:
        """Writes what was counted and ends the process."""
        found = {"steps": self.steps, **memory(), **self.more}
        Path(self.spec["out"]).write_text(json.dumps(found), encoding="utf-8")
        os._exit(0)


def settle() -> None:
    """Waits for what the GPU has still to do."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory() -> dict[str, float]:
    """The most memory that tensors took on the GPU, and the allocator with its reserve; of a process without one its
    own peak."""
    import torch

    if torch.cuda.is_available():
        return {
            "peak_gib": torch.cuda.max_memory_allocated() / GIB,
            "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        }
    return {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB}


def attach(watch: Stopwatch) -> None:
    """Puts the stopwatch on every Trainer of this process."""
    import transformers
    from transformers import trainer

    original = transformers.Trainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        watch.saw(inputs)
        return original(self, model, inputs, *args, **kwargs)

    class Timer(transformers.TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            watch.begin()

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if not watch.steps:  # whatever comes before the first step is not part of it
                watch.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            watch.step()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            watch.finish()

    transformers.Trainer.training_step = training_step
    trainer.DEFAULT_CALLBACKS.append(Timer)


def run_zephyrctl(watch: Stopwatch) -> None:
    """The command; beside the steps it tells what was chosen, what was estimated, and how long the reference took."""
    from zephyrctl.cli.app import main
    from zephyrctl.training import loop, stage
    from zephyrctl.training.footprint import read_shape
    from zephyrctl.training.memory import estimate_memory
    from zephyrctl.training.scoring import Scorer

    pairs, run, machine = Scorer.pairs, loop.run, stage.this_machine
    cap = watch.spec["cap_gib"]

    def timed_pairs(self: Any, rows: Any) -> Any:
        settle()
        begin = time.perf_counter()
        found = pairs(self, rows)
        settle()
        watch.more["reference_seconds"] = (
            watch.more.get("reference_seconds", 0.0) + time.perf_counter() - begin
        )
        watch.more["reference_pairs"] = watch.more.get("reference_pairs", 0) + len(rows)
        return found

    def told_run(job: Any) -> None:
        shape = read_shape(job.init)
        needed = estimate_memory(job.config, shape, job.choice, micro=job.plan.micro)
        watch.more |= {
            "micro": job.plan.micro,
            "recompute": job.choice.recompute,
            "attention": job.choice.attention,
            "engine": job.choice.name,
            "estimate_gib": None if needed is None else (needed.device) / GIB,
        }
        run(job)

    def capped() -> Any:
        found = machine()
        return replace(found, gpus=tuple(replace(gpu, memory=int(cap * GIB)) for gpu in found.gpus))

    Scorer.pairs = timed_pairs  # type: ignore[method-assign]
    stage.run = told_run
    if cap:
        stage.this_machine = capped
    sys.argv = ["zephyrctl", *watch.spec["argv"]]
    main()


def run_trl(watch: Stopwatch) -> None:
    """The script that `trl sft` or `trl dpo` starts."""
    task, *argv = watch.spec["argv"]
    found = find_spec(f"trl.scripts.{task}")
    if found is None or found.origin is None:
        raise SystemExit(f"TRL has no script {task}")
    sys.argv = [found.origin, *argv]
    runpy.run_path(found.origin, run_name="__main__")


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    watch = Stopwatch(spec)
    if spec["cap_gib"]:
        import torch

        if torch.cuda.is_available():
            whole = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, spec["cap_gib"] * GIB / whole))
    attach(watch)
    (run_zephyrctl if spec["who"] == "zephyrctl" else run_trl)(watch)


if __name__ == "__main__":
    main()
