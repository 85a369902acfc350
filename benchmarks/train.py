"""Measures training beside TRL, as tokens and pairs a second in one run: `python benchmarks/train.py`.

Model (Mistral's shape, random weights), rows (lengths spread as real ones are) and settings are the same for both;
every run is a new process under the same stopwatch (peers/timed_training.py), the programs take turns, medians are
compared. Tokens are those that bear loss; padding never counts. Seconds of all processors are given beside those of
the clock, because a shared machine disturbs them less. Results are written after every run.

sft     zephyrctl and TRL's own CLI defaults (8 rows a batch, recomputation, no packing), and both with packing
dpo     zephyrctl, whose reference reads every pair once before the first step, and TRL's defaults, which run the
        reference in every step
qlora   7B-shaped SFT and DPO in 24 GiB of GPU memory: its peak beside the estimate (a GPU only)

With a GPU the model has as many layers as can be trained whole, rows of mean 1372 cut at 2048 and an MFU; without one
it is small, and each part is done in bfloat16 (TRL's default) and in float32. Beside each ratio stands its bound: what
fewer positions, no recomputation and no reference in the step allow by the count of training/flops.py, with everything
else equal. `--tiny` runs every part in miniature on any machine, to try the script itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import training_inputs as made
from training_runs import Cell, Scene, Seen, run

HERE = Path(__file__).parent
CAP_GIB = 24.0
Keep = Callable[[dict[str, Any]], None]
Part = Callable[[Path, argparse.Namespace, Keep], None]
OURS = ["packing", "micro", "recompute", "attention", "engine", "estimate_gib"]


def main() -> None:
    options = parsed()
    result: dict[str, Any] = {
        "machine": machine(),
        "command": " ".join(["python benchmarks/train.py", *sys.argv[1:]]),
    }
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        for name, part in parts(options):
            begin = Path(folder) / name
            begin.mkdir()

            def keep(found: dict[str, Any], name: str = name) -> None:
                result[name] = found
                options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

            try:
                part(begin, options, keep)
            except Exception as error:  # what was measured before stays
                keep({**result.get(name, {}), "fault": f"{type(error).__name__}: {error}"})
            shutil.rmtree(begin, ignore_errors=True)
            for line in shown(name, result[name]):
                print(line, flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="rows of data; default 64, on a GPU 768")
    parser.add_argument("--mean", type=float, help="mean tokens of a row; default 340, on a GPU 1372")
    parser.add_argument("--length", type=int, help="tokens rows are cut at; default 512, on a GPU 2048")
    parser.add_argument("--steps", type=int, help="optimiser steps of a run at most; default 8, on a GPU 12")
    parser.add_argument("--warm", type=int, default=1, help="steps before the count")
    parser.add_argument("--seconds", type=float, default=60, help="counted time of a run after which it ends")
    parser.add_argument("--repeats", type=int, help="default 2, on a GPU 1")
    parser.add_argument("--layers", type=int, help="of the GPU's model; default: as many as fit")
    parser.add_argument("--parts", nargs="*", default=[], help="only these")
    parser.add_argument("--tiny", action="store_true", help="everything in miniature")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=HERE / "train.json")
    options = parser.parse_args()
    options.gpu = has_gpu()
    if options.tiny:
        options.steps, options.repeats, options.warm = 2, 1, 1
    large = options.gpu and not options.tiny
    options.repeats = options.repeats or (1 if large else 2)
    options.steps = options.steps or (12 if large else 8)
    options.rows = options.rows or (24 if options.tiny else 768 if large else 64)
    options.mean = options.mean or (40 if options.tiny else 1372 if large else 340)
    options.length = options.length or (64 if options.tiny else 2048 if large else 512)
    return options


def parts(options: argparse.Namespace) -> Iterator[tuple[str, Part]]:
    """The parts that this machine can do."""
    wanted = {"sft": measure_sft, "dpo": measure_dpo}
    if options.gpu or options.tiny:
        wanted["qlora"] = measure_qlora
    for name, part in wanted.items():
        if not options.parts or name in options.parts:
            yield name, part


def measure_sft(folder: Path, options: argparse.Namespace, keep: Keep) -> None:
    """Tokens a second of full fine-tuning."""
    sizes = full_sizes(options)
    scene = prepare(folder, options, sizes, "sft")
    cells = []
    for dtype in ("bf16",) if options.gpu else ("bf16", "fp32"):
        cells += [
            Cell("zephyrctl", "sft", f"zephyrctl, {dtype}", dtype),
            Cell("trl", "sft", f"TRL's defaults, {dtype}", dtype),
            Cell("zephyrctl", "sft", f"zephyrctl, packed, {dtype}", dtype, "best-fit"),
            Cell("trl", "sft", f"TRL, packed, {dtype}", dtype, "bfd"),
            Cell("zephyrctl", "sft", f"zephyrctl, packed, batch 32, {dtype}", dtype, "best-fit", batch=32)
            if options.gpu
            else Cell("zephyrctl", "sft", f"zephyrctl, passes of 2, {dtype}", dtype, micro=2),
        ]
    compare(scene, cells, sizes, options, keep)


def measure_dpo(folder: Path, options: argparse.Namespace, keep: Keep) -> None:
    """Pairs a second; on a GPU with adapters on a 7B-shaped model, of which TRL can hold one."""
    sizes = made.MISTRAL_7B if options.gpu and not options.tiny else small_sizes(options)
    rows = argparse.Namespace(**{**vars(options), "rows": options.rows // 2})
    scene = prepare(folder, rows, sizes, "dpo")
    cells = []
    for dtype in ("bf16",) if options.gpu else ("bf16", "fp32"):
        cells += [
            Cell("zephyrctl", "dpo", f"zephyrctl, {dtype}", dtype, lora=options.gpu),
            Cell("trl", "dpo", f"TRL's defaults, {dtype}", dtype, lora=options.gpu),
        ]
    compare(scene, cells, sizes, options, keep)


def measure_qlora(folder: Path, options: argparse.Namespace, keep: Keep) -> None:
    """Peak memory of 4-bit training within 24 GiB, beside the estimate."""
    sizes = small_sizes(options) if options.tiny else made.MISTRAL_7B
    found: dict[str, Any] = {"cap_gib": CAP_GIB, "sizes": sizes, "cells": {}}
    model = made.write_model(folder / "model", sizes, options.length, dtype=stored(options))
    for task in ("sft", "dpo"):
        scene = replace(prepare(folder / task, options, sizes, task, model=model), cap=CAP_GIB, steps=4)
        packing = "best-fit" if task == "sft" else "none"
        cell = Cell("zephyrctl", task, f"QLoRA {task}", "bf16", packing, lora=True, nf4=True)
        seen = Seen()
        run(scene, cell, seen)
        found["cells"][cell.label] = told(cell, seen, scene, sizes)
        keep(found)


def full_sizes(options: argparse.Namespace) -> dict[str, int]:
    """A 7B model's layers, as many as both programs can train whole with 8 rows a pass and recomputation."""
    if not options.gpu or options.tiny:
        return small_sizes(options)
    from zephyrctl.stages.sft.config import SftConfig
    from zephyrctl.training.choosing import FILL
    from zephyrctl.training.engine import EngineChoice
    from zephyrctl.training.hardware import this_machine
    from zephyrctl.training.memory import estimate_memory

    config = SftConfig(max_length=options.length, batch_size=8)
    choice = EngineChoice(device="cuda", recompute=True)
    room = FILL * (this_machine().gpu_memory or 0)
    for layers in range(options.layers or 32, 0, -1):
        sizes = {**made.MISTRAL_7B, "num_hidden_layers": layers}
        needed = estimate_memory(config, shape(sizes), choice, micro=8)
        if options.layers or (needed is not None and needed.device <= room):
            return sizes
    return small_sizes(options)


def small_sizes(options: argparse.Namespace) -> dict[str, int]:
    if options.tiny:
        return {**made.SMALL, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    return made.SMALL


def stored(options: argparse.Namespace) -> str:
    return "bfloat16" if options.gpu else "float32"


def prepare(
    folder: Path, options: argparse.Namespace, sizes: dict[str, int], task: str, model: Path | None = None
) -> Scene:
    """Writes model and rows."""
    from zephyrctl.training.flops import mean_context

    wanted = made.lengths(options.rows, options.mean, options.length)
    folder.mkdir(exist_ok=True)
    model = model or made.write_model(folder / "model", sizes, options.length, dtype=stored(options))
    write = made.write_dialogues if task == "sft" else made.write_pairs
    return Scene(
        model=model, rows=write(folder / "rows", wanted), length=options.length,
        mean=sum(wanted) / len(wanted), steps=options.steps, warm=options.warm,
        seconds=options.seconds, context=mean_context(wanted), gpu=options.gpu,
    )  # fmt: skip


def compare(
    scene: Scene, cells: list[Cell], sizes: dict[str, int], options: argparse.Namespace, keep: Keep
) -> None:
    """All cells in turn, as often as asked for; kept after every run: a time limit loses no more than one."""
    seen = {cell.label: Seen() for cell in cells}
    for _ in range(options.repeats):
        for cell in cells:
            run(scene, cell, seen[cell.label])
            rows = {c.label: told(c, seen[c.label], scene, sizes) for c in cells if seen[c.label].begun}
            keep({
                "sizes": sizes, "parameters": shape(sizes).parameters, "mean_tokens": round(scene.mean),
                "max_length": scene.length, "warm": scene.warm, "repeats": options.repeats, "cells": rows,
                "ratios": list(ratios(cells, rows)),
            })  # fmt: skip


def ratios(cells: list[Cell], rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each of ours beside each of TRL's of the same type."""
    for cell in (c for c in cells if c.who == "zephyrctl"):
        for peer in (c for c in cells if c.who == "trl" and c.dtype == cell.dtype):
            ours, theirs = rows.get(cell.label, {}), rows.get(peer.label, {})
            if "flops_per_unit" in ours and "flops_per_unit" in theirs:
                yield ratio(cell, peer, ours, theirs)


def ratio(cell: Cell, peer: Cell, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How many times faster ours is, and what the count of operations alone would allow."""
    unit = "pairs" if cell.task == "dpo" else "tokens"
    return {
        "ours": cell.label,
        "peer": peer.label,
        "speed": round(ours[f"{unit}_per_second"] / theirs[f"{unit}_per_second"], 2),
        "by_processor_time": round(ours[f"{unit}_per_cpu_second"] / theirs[f"{unit}_per_cpu_second"], 2),
        "bound": round(theirs["flops_per_unit"] / ours["flops_per_unit"], 2),
        "bound_of_positions": round(theirs["positions_per_unit"] / ours["positions_per_unit"], 2),
    }


def shape(sizes: dict[str, int]) -> Any:
    from zephyrctl.training.footprint import shape_of

    return shape_of({"architectures": ["MistralForCausalLM"], "model_type": "mistral", **sizes})


def told(cell: Cell, seen: Seen, scene: Scene, sizes: dict[str, int]) -> dict[str, Any]:
    """A cell in numbers: medians over its runs of what was measured after the warm-up."""
    if seen.fault or not seen.runs:
        return {"fault": seen.fault or "no run"}
    unit = "pairs" if cell.task == "dpo" else "tokens"
    each = [counted(run["steps"][scene.warm :], unit) for run in seen.runs]
    found = {name: statistics.median(one[name] for one in each) for name in each[0]}
    last = seen.runs[-1]
    work = operations(cell, scene, sizes, recompute=last.get("recompute", True))
    found["flops_per_unit"] = work["machine"] * found["positions_per_unit"]
    found["peak_gib"] = max(run["peak_gib"] for run in seen.runs)
    for name in ("reserved_gib", *OURS):
        if name in last:
            found[name] = last[name]
    if "reference_seconds" in last:
        spent = statistics.median(r["reference_seconds"] / r["reference_pairs"] for r in seen.runs)
        found["reference_seconds_per_pair"] = spent
        for epochs in (1, 3):
            whole = 1 / found["pairs_per_second"] + spent / epochs
            found[f"pairs_per_second_of_{epochs}_epochs_with_reference"] = 1 / whole
    if cell.task == "sft" and scene.gpu:
        found["mfu"] = utilisation(work["model"] * found["tokens_per_second"])
    return {
        **{name: rounded(value) for name, value in found.items()},
        "runs": [[rounded(one[f"{unit}_per_second"]) for one in each], [len(r["steps"]) for r in seen.runs]],
        "argv": [word.replace(str(scene.rows.parent), "WORK") for word in last["argv"]],
    }


def counted(steps: list[dict[str, Any]], unit: str) -> dict[str, float]:
    """Speeds, and positions computed for each token that bears loss (for each pair), of one run's measured steps."""
    units = sum(step["rows" if unit == "pairs" else "counted"] for step in steps)
    positions = sum(rows * width for step in steps for rows, width in step["passes"])
    return {
        f"{unit}_per_second": units / sum(step["seconds"] for step in steps),
        f"{unit}_per_cpu_second": units / sum(step["cpu_seconds"] for step in steps),
        "positions_per_unit": positions / units,
        "seconds_per_step": statistics.median(step["seconds"] for step in steps),
    }


def operations(cell: Cell, scene: Scene, sizes: dict[str, int], *, recompute: bool) -> dict[str, float]:
    """Operations for each position: what the model needs, and what the machine does with the blocks recomputed (the
    output head is not) and TRL's reference in the step."""
    from zephyrctl.training.flops import flops_per_token

    known = shape(sizes)
    work = flops_per_token(known, scene.context, lora=cell.lora)
    assert work is not None
    again = work.forward - 2.0 * known.embedding if recompute else 0.0
    reference = work.forward if cell.who == "trl" and cell.task == "dpo" else 0.0
    return {"model": work.model, "machine": work.model + again + reference}


def utilisation(flops: float) -> float | None:
    """The share of the GPU's best bfloat16 speed; None for a GPU that is not known."""
    import torch

    from zephyrctl.training.flops import peak_flops

    peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return None if peak is None else flops / peak


def rounded(value: Any) -> Any:
    """Four digits that count."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def machine() -> dict[str, Any]:
    """What was measured on."""
    import torch

    from zephyrctl.training.hardware import installed, this_machine

    packages = ("torch", "transformers", "trl", "accelerate", "peft", "datasets")
    from importlib.metadata import version

    return {
        "hardware": this_machine().summary,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
        "packages": {name: version(name) for name in packages},
        "optional": sorted(installed()),
    }


def shown(name: str, part: dict[str, Any]) -> Iterator[str]:
    """A part as lines for people."""
    yield name
    if "fault" in part:
        yield f"  {part['fault']}"
    for label, row in part.get("cells", {}).items():
        if "fault" in row:
            yield f"  {label:28} {row['fault']}"
            continue
        unit = "pairs" if "pairs_per_second" in row else "tokens"
        yield (
            f"  {label:28} {row[f'{unit}_per_second']:>9} {unit}/s {row[f'{unit}_per_cpu_second']:>9} /cpu s"
            f" {row['positions_per_unit']:>7} positions each {row['peak_gib']:>6} GiB"
            + (f" (estimate {row['estimate_gib']})" if row.get("estimate_gib") else "")
            + (f" MFU {row['mfu']:.1%}" if row.get("mfu") else "")
        )
    for one in part.get("ratios", ()):
        yield (
            f"  {one['ours']:28} x{one['speed']:.2f} of {one['peer']} (processor time x{one['by_processor_time']:.2f},"
            f" bound x{one['bound']:.2f}, of it padding x{one['bound_of_positions']:.2f})"
        )


if __name__ == "__main__":
    main()
