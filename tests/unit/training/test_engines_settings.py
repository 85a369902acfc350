"""What each engine is told, in the names that accelerate and DeepSpeed read; and that nothing else may run instead."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zephyrctl.errors import EnvironmentFault, UsageError
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.engines import (
    DEEPSPEED,
    deepspeed_settings,
    environment,
    of_no_launcher,
    refuse_other_launcher,
    require_engine,
    write_deepspeed_settings,
)

PLACE = {"rank": 3, "local_rank": 1, "local_world": 2, "address": "node1", "port": 29500}
MEETING = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}  # fmt: skip


def told(name: Any, folder: Path, device: Any = "cpu", **changes: Any) -> dict[str, str]:
    choice = EngineChoice(name, 1 if name == "single" else 4, 2, device, **changes)
    return environment(choice, folder=folder, **PLACE)


def test_one_process_needs_no_environment(tmp_path: Path) -> None:
    assert told("single", tmp_path) == {}


def test_where_processes_meet_is_the_same_for_every_engine(tmp_path: Path) -> None:
    for name in ("ddp", "fsdp2", "zero2", "zero3"):
        assert told(name, tmp_path).items() >= MEETING.items()
    assert told("ddp", tmp_path, "cuda") == MEETING
    assert told("ddp", tmp_path) == {**MEETING, "ACCELERATE_USE_CPU": "true"}


@pytest.fixture
def apply(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets an environment as a process would find it."""

    def set_all(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_all


def test_accelerate_reads_fsdp2_as_it_is_meant(tmp_path: Path, apply: Any) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin

    apply(told("fsdp2", tmp_path, offload=True))
    found = FullyShardedDataParallelPlugin()
    assert found.fsdp_version == 2
    assert found.reshard_after_forward is True
    assert found.cpu_offload
    assert found.activation_checkpointing is False
    assert str(found.state_dict_type).endswith("SHARDED_STATE_DICT")
    assert found.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert told("fsdp2", tmp_path)["ACCELERATE_TORCH_DEVICE"] == "cpu"
    assert "ACCELERATE_TORCH_DEVICE" not in told("fsdp2", tmp_path, "cuda")


@pytest.mark.parametrize("stage", [2, 3])
def test_accelerate_reads_zero_as_it_is_meant(stage: int, tmp_path: Path, apply: Any) -> None:
    pytest.importorskip("deepspeed")
    from accelerate.utils import DeepSpeedPlugin

    name: Any = f"zero{stage}"
    choice = EngineChoice(name, 4, 2, offload=True)
    write_deepspeed_settings(tmp_path, choice, dtype="bf16", max_grad_norm=0.5)
    apply(environment(choice, folder=tmp_path, **PLACE))
    found = DeepSpeedPlugin()
    assert found.zero_stage == stage
    assert found.zero3_init_flag is (stage == 3)
    assert found.hf_ds_config.is_offload()
    assert found.deepspeed_config["gradient_clipping"] == 0.5
    assert found.deepspeed_config["bf16"] == {"enabled": True}


def test_settings_of_zero() -> None:
    plain = deepspeed_settings(EngineChoice("zero2", 2), dtype="fp32", max_grad_norm=1.0)
    assert "bf16" not in plain
    assert plain["zero_optimization"]["stage"] == 2
    assert not any(key.startswith(("stage3", "offload")) for key in plain["zero_optimization"])
    for device, pinned in (("cpu", False), ("cuda", True)):
        moved = deepspeed_settings(
            EngineChoice("zero3", 2, device=device, offload=True),  # type: ignore[arg-type]
            dtype="bf16",
            max_grad_norm=1.0,
        )["zero_optimization"]
        assert moved["offload_optimizer"] == moved["offload_param"] == {"device": "cpu", "pin_memory": pinned}
    two = deepspeed_settings(EngineChoice("zero2", 2, offload=True), dtype="bf16", max_grad_norm=1.0)
    assert "offload_param" not in two["zero_optimization"]  # stage 2 leaves the weights where they are


def test_the_file_is_written_for_deepspeed_only_and_where_it_is_looked_for(tmp_path: Path) -> None:
    for name in ("single", "ddp", "fsdp2"):
        write_deepspeed_settings(tmp_path, EngineChoice(name, 2), dtype="bf16", max_grad_norm=1.0)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    choice = EngineChoice("zero3", 2)
    write_deepspeed_settings(tmp_path, choice, dtype="bf16", max_grad_norm=1.0)
    path = Path(told("zero3", tmp_path)["ACCELERATE_DEEPSPEED_CONFIG_FILE"])
    assert path == tmp_path / DEEPSPEED
    assert json.loads(path.read_text(encoding="utf-8")) == deepspeed_settings(
        choice, dtype="bf16", max_grad_norm=1.0
    )


def accelerator(kind: str, processes: int, stage: int = 0) -> Any:
    """What require_engine looks at."""
    from accelerate.utils import DistributedType

    state = SimpleNamespace(
        deepspeed_plugin=SimpleNamespace(zero_stage=stage),
        fsdp_plugin=SimpleNamespace(mixed_precision_policy=None),
    )
    return SimpleNamespace(
        distributed_type=DistributedType[kind],
        num_processes=processes,
        process_index=processes - 1,
        state=state,
    )


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("single", ("NO", 1)), ("ddp", ("MULTI_GPU", 2)), ("ddp", ("MULTI_CPU", 2)), ("fsdp2", ("FSDP", 2)),
        ("zero2", ("DEEPSPEED", 2, 2)), ("zero3", ("DEEPSPEED", 2, 3)),
    ],
)  # fmt: skip
def test_the_engine_that_was_chosen_gives_a_crew(name: Any, found: Any) -> None:
    crew = require_engine(accelerator(*found), EngineChoice(name, found[1]))
    assert (crew.rank, crew.world) == (found[1] - 1, found[1])


def test_fsdp2_rounds_weights_and_neither_gradients_nor_log_probabilities() -> None:
    import torch
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    made = accelerator("FSDP", 2)
    made.state.fsdp_plugin = plugin
    require_engine(made, EngineChoice("fsdp2", 2))
    policy = plugin.mixed_precision_policy
    kinds = (policy.param_dtype, policy.reduce_dtype, policy.output_dtype)
    assert kinds == (torch.bfloat16, torch.float32, None)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ddp", ("NO", 1)),  # each process trains a model of its own
        ("ddp", ("MULTI_CPU", 3)),
        ("fsdp2", ("MULTI_GPU", 2)),
        ("zero3", ("MULTI_GPU", 2)),
        ("zero3", ("DEEPSPEED", 2, 2)),
        ("zero2", ("DEEPSPEED", 2, 3)),
        ("zero2", ("DEEPSPEED", 1, 2)),
    ],
)
def test_another_engine_or_world_is_refused(name: Any, found: Any) -> None:
    with pytest.raises(EnvironmentFault, match=f"{name} over 2 processes was") as caught:
        require_engine(accelerator(*found), EngineChoice(name, 2))
    assert found[0] in caught.value.message
    assert "ACCELERATE_" in str(caught.value.hint)


def test_one_process_under_another_launcher_is_refused() -> None:
    with pytest.raises(EnvironmentFault, match="single over 1"):
        require_engine(accelerator("MULTI_CPU", 2), EngineChoice())


def test_a_process_of_another_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="is one of 4") as caught:
        refuse_other_launcher()
    assert "--num-processes 4" in str(caught.value.hint)
    monkeypatch.setenv("WORLD_SIZE", "1")
    refuse_other_launcher()
    assert "RANK" not in os.environ


def test_what_a_launcher_left_behind_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    left = {
        "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_DEEPSPEED": "true", "FSDP_OFFLOAD_PARAMS": "true",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "PMI_SIZE": "2", "LOCAL_RANK": "0",
    }  # fmt: skip
    ours = {"HOME": "/home", "NCCL_DEBUG": "INFO", "ACCELERATE_TORCH_DEVICE": "cpu"}
    assert of_no_launcher(left | ours) == ours
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    refuse_other_launcher()
    assert not left.keys() & os.environ.keys()
