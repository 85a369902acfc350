"""Which engine, attention and size of a pass the settings come to on given hardware. Pure functions of `Hardware`.

What the settings name is taken or refused with the fix; what they leave to `auto` is chosen from the memory estimate.
None of it changes a result: it decides speed and memory alone.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Literal

from zephyrctl.errors import EnvironmentFault, MissingExtra, UsageError
from zephyrctl.training.engine import AttentionName, EngineChoice
from zephyrctl.training.footprint import Shape
from zephyrctl.training.hardware import GIB, Hardware
from zephyrctl.training.memory import Estimate, estimate_memory
from zephyrctl.training.settings import TrainingConfig

FILL = 0.92
"""The share of a device's memory that an estimate may reach: the rest goes to fragmentation."""
_BUSY = 16_384
"""Tokens in a pass beyond which a GPU gains no speed."""
_BUSY_CPU = 1_024
"""Tokens in a pass beyond which a CPU gains none."""
_TINY = 5_000_000
"""Parameters below which a pass costs more by what surrounds its arithmetic."""
_EXTRA = {"flash_attn": "flash-attn", "bitsandbytes": "qlora", "deepspeed": "deepspeed"}


def choose_engine(config: TrainingConfig, shape: Shape, hardware: Hardware) -> EngineChoice:
    """Engine, processes, attention and recomputation for these settings.

    Raises UsageError for settings that contradict each other, MissingExtra and EnvironmentFault for what the hardware
    lacks; all before any work. Whether it fits is `require_fit`'s question.
    """
    processes = count_processes(config, hardware)
    _check_processes(config, processes, hardware)
    _check_packages(config, hardware)
    attention = _attention(config, shape, hardware)
    base = EngineChoice(
        name="single",
        processes=processes,
        machines=config.num_machines,
        device="cuda" if hardware.gpus else "cpu",
        offload=config.offload,
        attention=attention,
        recompute=config.recompute == "on",
    )
    if config.engine != "auto":
        _check_engine(config, config.engine, processes, hardware)
        return _with_recompute(config, shape, replace(base, name=config.engine), hardware)
    if processes == 1:
        _refuse_offload(config, "single")
        return _with_recompute(config, shape, base, hardware)
    return _automatic(config, shape, base, hardware)


def count_processes(config: TrainingConfig, hardware: Hardware) -> int:
    """Processes over all machines: as set, else one per GPU, else one per machine."""
    if config.num_processes is not None:
        return config.num_processes
    if hardware.described:
        return max(1, len(hardware.gpus))
    return max(1, len(hardware.gpus)) * config.num_machines


def choose_micro(config: TrainingConfig, shape: Shape, choice: EngineChoice, hardware: Hardware) -> int:
    """Rows of a forward pass: as set, else the most (a power of two) that keep a GPU busy and fit its memory."""
    share = max(1, -(-config.batch_size // choice.processes))
    if config.micro_batch is not None:
        return min(config.micro_batch, share)
    if choice.device == "cpu":
        return min(_rows_on_cpu(config, shape), share)
    room = device_bytes(choice, hardware)
    rows = 1
    while rows * 2 <= share and rows * config.max_length < _BUSY:
        needed = estimate_memory(config, shape, choice, micro=rows * 2)
        if needed is None or room is None or needed.device > FILL * room:
            break
        rows *= 2
    return rows


def _rows_on_cpu(config: TrainingConfig, shape: Shape) -> int:
    """A CPU gains nothing from a fuller pass once its matrices are not tiny, and small passes, each of rows of like
    length, pad less."""
    if shape.parameters is not None and shape.parameters < _TINY:
        return config.rows_per_pass(shape.parameters)
    rows = 1
    while rows * 2 * config.max_length <= _BUSY_CPU:
        rows *= 2
    return rows


def device_bytes(choice: EngineChoice, hardware: Hardware) -> int | None:
    """Memory of each process's device; without GPUs the processes of a machine share its main memory."""
    if choice.device == "cuda":
        return hardware.gpu_memory
    here = max(1, choice.processes // max(1, choice.machines))
    return None if hardware.memory is None else hardware.memory // here


def fits(
    config: TrainingConfig, shape: Shape, choice: EngineChoice, hardware: Hardware, *, micro: int
) -> bool:
    """Whether a pass of `micro` rows fits; yes where either side is not known."""
    needed, room = estimate_memory(config, shape, choice, micro=micro), device_bytes(choice, hardware)
    return needed is None or room is None or _on_device(needed, choice) <= FILL * room


def _on_device(needed: Estimate, choice: EngineChoice) -> int:
    """Bytes that a process wants of its device; without a GPU, main memory is the device and gets everything."""
    return needed.device + (needed.host if choice.device == "cpu" else 0)


def require_fit(
    config: TrainingConfig, shape: Shape, choice: EngineChoice, hardware: Hardware, *, micro: int
) -> Estimate | None:
    """The estimate of a pass of `micro` rows. Raises EnvironmentFault, with what would fit, where it does not."""
    needed, room = estimate_memory(config, shape, choice, micro=micro), device_bytes(choice, hardware)
    if needed is None or room is None:
        return needed
    here = max(1, choice.processes // max(1, choice.machines))
    count = f"{choice.processes} process{'es' if choice.processes != 1 else ''}"
    if (
        choice.device == "cuda"
        and hardware.memory is not None
        and needed.host * here > FILL * hardware.memory
    ):
        raise EnvironmentFault(
            f"what {choice.name} on {count} keeps off the GPUs needs about {needed.host * here / GIB:.0f} GiB of main"
            f" memory on each machine, {hardware.memory / GIB:.0f} GiB are free",
            hint="--set offload=false with more GPUs, or adapters: --set lora=true",
        )
    total = _on_device(needed, choice)
    if total <= FILL * room:
        return needed
    largest = sorted((p for p in needed.parts if p.where == "device"), key=lambda p: -p.size)[:3]
    shown = ", ".join(f"{p.name} {p.size / GIB:.1f}" for p in largest)
    place = (
        "each GPU has" if choice.device == "cuda" else "this machine has" if here == 1 else "each process has"
    )
    raise EnvironmentFault(
        f"training this {shape.size}-parameter model with {choice.name} on {count} needs about {total / GIB:.0f} GiB a"
        f" process ({shown} GiB), {place} {room / GIB:.0f} GiB",
        hint=_remedy(config, shape, choice, hardware, micro),
    )


def _remedy(
    config: TrainingConfig, shape: Shape, choice: EngineChoice, hardware: Hardware, micro: int
) -> str:
    """The mildest change that the estimate says is enough."""
    thrifty = replace(choice, recompute=True)
    if micro > 1 and fits(config, shape, choice, hardware, micro=1):
        return "a smaller pass gives the same result: --set micro_batch=1"
    if fits(config, shape, thrifty, hardware, micro=1):
        return "--set recompute=on --set micro_batch=1"
    if choice.processes > 1:
        for name in ("zero3", "fsdp2"):
            sharded = replace(thrifty, name=name)
            if choice.name != name and fits(config, shape, sharded, hardware, micro=1):
                return f"--set engine={name} --set recompute=on --set micro_batch=1"
    if not config.lora:
        adapted = config.model_copy(update={"lora": True})
        if fits(adapted, shape, thrifty, hardware, micro=1):
            return "adapters need less: --edition one-gpu, or --set lora=true"
        adapted = config.model_copy(update={"lora": True, "quantize": "nf4"})
        if choice.device == "cuda" and fits(adapted, shape, thrifty, hardware, micro=1):
            return "adapters on weights in 4 bits need less: --set lora=true --set quantize=nf4"
    return "more or larger GPUs, a shorter --max-length, or a smaller model: --init sandbox"


def _automatic(config: TrainingConfig, shape: Shape, base: EngineChoice, hardware: Hardware) -> EngineChoice:
    """Of several processes: DDP where the model fits whole, else the sharded engine that is installed."""
    if config.offload:
        _check_engine(config, "zero3", base.processes, hardware)
        return _sharded(config, shape, replace(base, name="zero3"), hardware, "offloading is asked for")
    for recompute in _recomputes(config):
        plain = replace(base, name="ddp", recompute=recompute)
        if fits(config, shape, plain, hardware, micro=1):
            return replace(plain, why="the whole model fits on every device")
    why = "the whole model does not fit on one device"
    if config.quantize == "none" and _deepspeed_runs(config, hardware):
        return _sharded(config, shape, replace(base, name="zero3"), hardware, why)
    if config.quantize == "none" and base.device == "cuda" and config.optimizer != "paged_adamw_32bit":
        return _sharded(config, shape, replace(base, name="fsdp2"), hardware, why)
    return replace(
        base, name="ddp", recompute=config.recompute != "off", why="no sharded engine can run here"
    )


def _sharded(
    config: TrainingConfig, shape: Shape, choice: EngineChoice, hardware: Hardware, why: str
) -> EngineChoice:
    return replace(_with_recompute(config, shape, choice, hardware), why=why)


def _with_recompute(
    config: TrainingConfig, shape: Shape, choice: EngineChoice, hardware: Hardware
) -> EngineChoice:
    """The choice with recomputation as set; where that is left open, on only if one row does not fit without it."""
    if config.recompute != "auto" or fits(config, shape, choice, hardware, micro=1):
        return choice
    return replace(choice, recompute=True, why="activations are recomputed because they do not fit otherwise")


def _recomputes(config: TrainingConfig) -> tuple[bool, ...]:
    return {"auto": (False, True), "on": (True,), "off": (False,)}[config.recompute]


def _attention(config: TrainingConfig, shape: Shape, hardware: Hardware) -> AttentionName:
    ready = bool(hardware.gpus) and "flash_attn" in hardware.packages and config.dtype == "bf16"
    if config.attn == "auto":
        # Gemma 2 caps its attention scores, which sdpa cannot
        plain: AttentionName = "eager" if shape.architecture.startswith("Gemma2") else "sdpa"
        return "flash_attention_2" if ready else plain
    if config.attn == "flash":
        if not hardware.gpus:
            raise EnvironmentFault(
                "FlashAttention needs a GPU, and none is visible here", hint="--set attn=sdpa"
            )
        if "flash_attn" not in hardware.packages:
            raise MissingExtra("flash_attn", _EXTRA["flash_attn"])
        if config.dtype != "bf16":
            raise UsageError(
                "FlashAttention computes in bfloat16 only", hint="--set dtype=bf16 or --set attn=sdpa"
            )
        return "flash_attention_2"
    return config.attn


def _check_processes(config: TrainingConfig, processes: int, hardware: Hardware) -> None:
    machines = config.num_machines
    if processes % machines:
        raise UsageError(
            f"{processes} processes do not divide among {machines} machines",
            hint=f"--num-processes {machines * max(1, processes // machines)}",
        )
    if processes > config.batch_size:
        raise UsageError(
            f"a batch of {config.batch_size} cannot be shared by {processes} processes",
            hint=f"--batch-size {processes}, or --num-processes {config.batch_size}",
        )
    here = processes if hardware.described else processes // machines
    if hardware.gpus and here > len(hardware.gpus):
        raise EnvironmentFault(
            f"{here} processes on a machine with {len(hardware.gpus)} visible GPU"
            f"{'s' if len(hardware.gpus) != 1 else ''}: each process needs its own",
            hint=f"--num-processes {len(hardware.gpus) * (1 if hardware.described else machines)}",
        )


def _check_packages(config: TrainingConfig, hardware: Hardware) -> None:
    """Raises where the settings ask for bitsandbytes and it is missing or of no use."""
    wants = "quantize=nf4" if config.quantize == "nf4" else "optimizer=paged_adamw_32bit"
    if config.quantize == "none" and config.optimizer != "paged_adamw_32bit":
        return
    if "bitsandbytes" not in hardware.packages:
        raise MissingExtra("bitsandbytes", _EXTRA["bitsandbytes"])
    if config.optimizer == "paged_adamw_32bit" and not hardware.gpus:
        raise EnvironmentFault(f"{wants} needs a GPU, and none is visible here", hint="--set optimizer=adamw")


def _check_engine(
    config: TrainingConfig, name: Literal["single", "ddp", "fsdp2", "zero2", "zero3"], processes: int,
    hardware: Hardware,
) -> None:  # fmt: skip
    if name == "single" and processes > 1:
        raise UsageError(
            f"engine=single is one process, and {processes} are asked for",
            hint="--set engine=auto, or --num-processes 1",
        )
    _refuse_offload(config, name)
    if config.quantize == "nf4" and name in ("fsdp2", "zero2", "zero3"):
        raise UsageError(
            f"weights in 4 bits are not spread over processes, as {name} would", hint="--set engine=ddp"
        )
    if config.optimizer == "paged_adamw_32bit" and name in ("fsdp2", "zero2", "zero3"):
        raise UsageError(
            f"{name} keeps its own optimiser states", hint="--set optimizer=adamw, --set offload=true"
        )
    if name == "fsdp2" and not hardware.gpus and os.environ.get("ACCELERATE_TORCH_DEVICE") != "cpu":
        raise EnvironmentFault(
            "fsdp2 needs GPUs: on a CPU accelerate would silently run plain DDP",
            hint="--set engine=zero3 (with --set dtype=fp32), or --set engine=ddp",
        )
    if name in ("zero2", "zero3"):
        _check_deepspeed(config, name, hardware)


def _check_deepspeed(config: TrainingConfig, name: str, hardware: Hardware) -> None:
    if "deepspeed" not in hardware.packages:
        raise MissingExtra("deepspeed", _EXTRA["deepspeed"])
    if hardware.gpus:
        return
    if config.dtype != "fp32":
        raise EnvironmentFault(f"{name} computes in float32 only on a CPU", hint="--set dtype=fp32")
    if not hardware.compiler:
        raise EnvironmentFault(
            f"{name} on a CPU builds a small C++ extension, and there is no compiler here",
            hint="install g++, or --set engine=ddp",
        )


def _deepspeed_runs(config: TrainingConfig, hardware: Hardware) -> bool:
    if config.optimizer == "paged_adamw_32bit" or "deepspeed" not in hardware.packages:
        return False
    return bool(hardware.gpus) or (config.dtype == "fp32" and hardware.compiler)


def _refuse_offload(config: TrainingConfig, name: str) -> None:
    if config.offload and name not in ("zero2", "zero3"):
        raise UsageError(
            f"engine={name} cannot offload: only ZeRO keeps its states in the CPU's memory",
            hint="--set engine=zero3 (or zero2), with --num-processes",
        )
