"""The outlook of a run as tables for people and as a document for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zephyrctl.events import Event, Table, Warning_
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.hardware import GIB
from zephyrctl.training.lengths import Workload
from zephyrctl.training.memory import Estimate
from zephyrctl.training.outlook import Outlook, Place


def tables(look: Outlook) -> list[Table]:
    """For people."""
    found = [_plan_table(look), _length_table(look.work)]
    if look.memory is not None:
        found.append(_memory_table(look.memory, look.room, look.choice, look.plan.micro))
    if look.places:
        found.append(_places_table(look.places))
    found.append(_cost_table(look))
    return found


def events(look: Outlook) -> list[Event]:
    """The tables, and a warning with the fix for everything that is missing."""
    lacks = [Warning_(lack.what + (f"; what to do: {lack.fix}" if lack.fix else "")) for lack in look.missing]
    return [*tables(look), *lacks]


def document(look: Outlook) -> dict[str, Any]:
    """For `--json`: the same, as numbers (bytes, seconds, shares)."""
    memory = None if look.memory is None else _memory_document(look.memory, look.room)
    return {
        "model": {"architecture": look.shape.architecture, "parameters": look.shape.parameters},
        "hardware": look.hardware.summary,
        "data": _data_document(look),
        "steps": _step_document(look),
        "engine": _engine_document(look.choice),
        "memory": memory,
        "places": [_place_document(place) for place in look.places],
        "time": None if look.time is None else vars(look.time) | {"gpu_hours": look.time.gpu_hours},
        "disk": None
        if look.disk is None
        else vars(look.disk) | {"needed": look.disk.needed, "free": look.free},
        "checks": dict(look.checks),
        "missing": [vars(lack) for lack in look.missing],
    }


def _plan_table(look: Outlook) -> Table:
    work, plan, choice = look.work, look.plan, look.choice
    unit = "packs" if work.packing != "none" else "pairs" if look.config.stage == "dpo" else "rows"
    rows = [
        ("model", f"{look.shape.architecture}, {look.shape.size} parameters"),
        (
            "rows",
            f"{work.rows:,}"
            + (f", {work.cut:,} of them cut by {work.cut_tokens:,} tokens" if work.cut else ""),
        ),
        ("tokens", f"{work.tokens:,} an epoch"),
    ]
    if work.packing != "none":
        capacity = look.config.max_length * work.sequences
        filled = sum(work.sizes) / capacity
        rows.append(
            (
                "packs",
                f"{work.sequences:,} of {look.config.max_length} tokens ({work.packing}), {filled:.1%} full",
            )
        )
    activations = "recomputed" if choice.recompute else "kept"
    passes = f"{plan.epochs:.3g} epoch{'s' if plan.epochs != 1 else ''}"
    engine = choice.name + (", offload" if choice.offload else "")
    rows += [
        ("padding", f"{look.padding:.1%} of the positions"),
        ("steps", f"{plan.steps:,} of {plan.batch} {unit}, {passes}, {plan.warmup_steps} of warm-up"),
        (
            "processes",
            f"{choice.processes} ({engine}) on {look.hardware.summary}",
        ),
        (
            "a pass",
            f"{plan.micro} {unit}, {choice.attention}, activations {activations}",
        ),
    ]
    if choice.why:
        rows.append(("because", choice.why))
    return Table("plan", ("what", "value"), (*rows, *look.checks))


def _length_table(work: Workload) -> Table:
    counted = work.histogram()
    most = max((n for _, n in counted), default=0) or 1
    rows = tuple((f"{bound:,}", f"{n:,}", "#" * round(30 * n / most)) for bound, n in counted)
    return Table("row lengths", ("tokens up to", "rows", ""), rows)


def _memory_table(memory: Estimate, room: int | None, choice: EngineChoice, micro: int) -> Table:
    where = {"device": "GPU" if choice.device == "cuda" else "memory", "host": "CPU memory"}
    rows = [(part.name, _bytes(part.size), where[part.where]) for part in memory.parts]
    have = "" if room is None else f" of {_bytes(room)}"
    rows.append(("together", f"{_bytes(memory.device)}{have}", where["device"]))
    return Table("memory of each process, at its fullest", ("what", "size", "where"), tuple(rows))


def _places_table(places: Sequence[Place]) -> Table:
    rows = tuple(
        (
            p.name,
            p.choice.name,
            str(p.micro),
            "recomputed" if p.choice.recompute else "kept",
            f"{p.memory.device / GIB:.1f} GiB",
            "yes" if p.fits else "no",
        )
        for p in places
    )
    columns = ("GPUs", "engine", "rows a pass", "activations", "memory per GPU", "fits")
    return Table("on other machines", columns, rows)


def _cost_table(look: Outlook) -> Table:
    rows: list[tuple[str, str]] = []
    if look.time is not None:
        rows.append(("arithmetic", f"{look.time.flops:.3g} floating-point operations"))
        said = "stated" if look.time.stated else "assumed"
        if look.time.seconds is not None and look.time.gpu_hours is not None:
            rows.append(("time", f"{_duration(look.time.seconds)} at an MFU of {look.time.mfu:.0%} ({said})"))
            rows.append(("GPU-hours", f"{look.time.gpu_hours:.1f}"))
        else:
            rows.append(("time", "not known: no GPU whose peak is known"))
    if look.disk is not None:
        rate = f"{look.disk.speed / 1e9:g} GB/s a machine"
        rows.append(
            (
                "a checkpoint",
                f"{_bytes(look.disk.checkpoint)}, {_duration(look.disk.stall)} to write at {rate}",
            )
        )
        have = "" if look.free is None else f", {_bytes(look.free)} are free"
        rows.append(("disk", f"up to {_bytes(look.disk.needed)}{have}"))
    return Table("cost", ("what", "value"), tuple(rows))


def _bytes(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _data_document(look: Outlook) -> dict[str, Any]:
    work = look.work
    return {
        "rows": work.rows,
        "tokens": work.tokens,
        "cut": work.cut,
        "cut_tokens": work.cut_tokens,
        "packing": work.packing,
        "sequences": work.sequences,
        "fill": sum(work.sizes) / (look.config.max_length * work.sequences) if work.sequences else 0.0,
        "padding": look.padding,
        "context": work.context,
        "histogram": work.histogram(),
    }


def _step_document(look: Outlook) -> dict[str, Any]:
    plan = look.plan
    return {
        "steps": plan.steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "batch": plan.batch,
        "micro_batch": plan.micro,
        "warmup_steps": plan.warmup_steps,
    }


def _engine_document(choice: EngineChoice) -> dict[str, Any]:
    return dict(vars(choice))


def _memory_document(memory: Estimate, room: int | None) -> dict[str, Any]:
    return {
        "parts": [vars(part) for part in memory.parts],
        "device": memory.device,
        "host": memory.host,
        "room": room,
    }


def _place_document(place: Place) -> dict[str, Any]:
    return {
        "name": place.name,
        "engine": place.choice.name,
        "micro_batch": place.micro,
        "recompute": place.choice.recompute,
        "device": place.memory.device,
        "fits": place.fits,
    }
