"""What each engine needs told: the environment that accelerate's own launcher would set, and DeepSpeed's settings."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zephyrctl.errors import EnvironmentFault, UsageError
from zephyrctl.training.crew import Crew
from zephyrctl.training.engine import EngineChoice

DEEPSPEED = "deepspeed.json"


def environment(
    choice: EngineChoice,
    *,
    rank: int,
    local_rank: int,
    local_world: int,
    address: str,
    port: int,
    folder: Path,
) -> dict[str, str]:
    """The variables of one process. `folder` holds DeepSpeed's settings where that is the engine."""
    if choice.name == "single":
        return {}
    found = {
        "RANK": str(rank),
        "WORLD_SIZE": str(choice.processes),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_world),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    on_cpu = choice.device == "cpu"
    if choice.name == "ddp":
        found |= {"ACCELERATE_USE_CPU": "true"} if on_cpu else {}
    if choice.name in ("zero2", "zero3"):
        found |= {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(folder / DEEPSPEED),
            "ACCELERATE_DEEPSPEED_ZERO3_INIT": str(choice.name == "zero3").lower(),
        }
        found |= {"DS_ACCELERATOR": "cpu"} if on_cpu else {}
    if choice.name == "fsdp2":
        found |= {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
            "FSDP_OFFLOAD_PARAMS": str(choice.offload).lower(),
            "FSDP_CPU_RAM_EFFICIENT_LOADING": str(not on_cpu).lower(),
            "FSDP_ACTIVATION_CHECKPOINTING": "false",
        }
        found |= {"ACCELERATE_TORCH_DEVICE": "cpu"} if on_cpu else {}
    return found


def deepspeed_settings(choice: EngineChoice, *, dtype: str, max_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's settings. Sizes and rates are filled in by transformers from the plan."""
    zero: dict[str, Any] = {
        "stage": 3 if choice.name == "zero3" else 2,
        "overlap_comm": choice.device == "cuda",
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if choice.name == "zero3":
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if choice.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": choice.device == "cuda"}
        if choice.name == "zero3":
            zero["offload_param"] = {"device": "cpu", "pin_memory": choice.device == "cuda"}
    found: dict[str, Any] = {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if dtype == "bf16":
        found["bf16"] = {"enabled": True}
    return found


def write_deepspeed_settings(folder: Path, choice: EngineChoice, *, dtype: str, max_grad_norm: float) -> None:
    """Puts the settings where `environment` says they are."""
    if choice.name in ("zero2", "zero3"):
        folder.mkdir(parents=True, exist_ok=True)
        body = deepspeed_settings(choice, dtype=dtype, max_grad_norm=max_grad_norm)
        (folder / DEEPSPEED).write_text(json.dumps(body, indent=1), encoding="utf-8")


def refuse_other_launcher() -> None:
    """Raises UsageError where another launcher has made this process one of several: they would wait for each other
    for ever. What a launcher left behind for one process alone is taken out of the environment."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count.isdigit() and int(count) > 1:
        raise UsageError(
            f"this process is one of {count} (WORLD_SIZE is set), and zephyrctl starts its processes itself",
            hint=f"run the command once, with --num-processes {count}; or unset WORLD_SIZE and RANK",
        )
    for name in os.environ.keys() - of_no_launcher(os.environ).keys():
        del os.environ[name]


def of_no_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what launchers tell their processes: it goes before the settings, in silence
    (ACCELERATE_MIXED_PRECISION would train in another dtype than the one asked for)."""
    return {
        name: value
        for name, value in environ.items()
        if name in _KEPT or not (name in _PLACE or name.startswith(_LAUNCHERS))
    }


_PLACE = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"})
_LAUNCHERS = (
    "ACCELERATE_", "FSDP_", "TORCHELASTIC_", "PARALLELISM_CONFIG_", "PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_",
)  # fmt: skip
_KEPT = frozenset({"ACCELERATE_TORCH_DEVICE"})
"""A choice of device, not of arithmetic; that it is the device chosen is asserted."""


_TYPES = {
    "single": ("NO",),
    "ddp": ("MULTI_GPU", "MULTI_CPU"),
    "fsdp2": ("FSDP",),
    "zero2": ("DEEPSPEED",),
    "zero3": ("DEEPSPEED",),
}


def require_engine(accelerator: Any, choice: EngineChoice) -> Crew:
    """This process's crew. Raises EnvironmentFault where the engine or the number of processes is not what was chosen:
    some ways of launching fall back to one process, or to plain DDP, in silence."""
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    stage = None
    if kind == "DEEPSPEED":
        stage = accelerator.state.deepspeed_plugin.zero_stage
    wrong = kind not in _TYPES[choice.name] or accelerator.num_processes != choice.processes
    wrong = wrong or (stage is not None and f"zero{stage}" != choice.name)
    if wrong:
        found = f"{kind}{'' if stage is None else f' stage {stage}'} over {accelerator.num_processes}"
        raise EnvironmentFault(
            f"the engine is not what was asked for: {choice.name} over {choice.processes} processes was, {found} is",
            hint="unset ACCELERATE_*, RANK and WORLD_SIZE variables of another launcher, or choose another --engine",
        )
    if kind == "FSDP":
        _sum_exactly(accelerator.state.fsdp_plugin)
    return Crew(rank=accelerator.process_index, world=accelerator.num_processes)


def _sum_exactly(plugin: Any) -> None:
    """With bf16 accelerate has FSDP2 round to bfloat16 not only the weights, but also the sums of gradients and all
    that the model returns: log-probabilities. Those stay in float32, as on every other engine."""
    import torch

    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
