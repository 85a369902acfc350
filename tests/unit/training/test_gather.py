"""Weights brought together on the leading process: alone, from two processes of FSDP2, and from two of ZeRO-3."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.training.gather import gathered, is_sharding, whole_models
from zephyrctl.training.model import load_model
from zephyrctl.training.settings import TrainingConfig

# Each process takes a step, as training would, and the leading one saves what was brought together: once with all
# weights trained, once with adapters only.
START = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.training.gather import gathered, is_sharding
from zephyrctl.training.lora import Base, LoraSettings
from zephyrctl.training.model import load_model, save_model
from zephyrctl.training.settings import TrainingConfig

def save(model, config, folder):
    leads = dist.get_rank() == 0
    state = gathered(model, leads=leads, trainable=config.lora)
    assert bool(state) is leads
    if leads:
        save_model(model, load_tokenizer(init), folder, "fp32", init=init, state=state, lora=LoraSettings.of(config),
                   base=Base("m", "sha256:0"))
    dist.barrier()

init, out, rows = Path(sys.argv[1]), Path(sys.argv[2]), torch.arange(4, 44)[None]
"""
FSDP = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
for name, adapters in (("full", False), ("lora", True)):
    config = TrainingConfig(lora=adapters, dtype="fp32", lora_r=4, lora_dropout=0.0)
    model = load_model(init, config=config)
    for layer in (model.base_model.model if adapters else model).model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(input_ids=rows, labels=rows).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter -= 0.1 * parameter.grad
    save(model, config, out / name)
dist.destroy_process_group()
"""
ZERO = """
import deepspeed
from transformers.integrations import HfDeepSpeedConfig
deepspeed.init_distributed("gloo")
settings = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True}
kept = HfDeepSpeedConfig(settings)
for name, adapters in (("full", False), ("lora", True)):
    config = TrainingConfig(lora=adapters, dtype="fp32", lora_r=4, lora_dropout=0.0)
    model = load_model(init, config=config)
    wanted = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, config=settings, optimizer=torch.optim.SGD(wanted, lr=0.1))
    engine.backward(engine(input_ids=rows, labels=rows).loss)
    engine.step()
    assert all(p.numel() == 0 for p in engine.module.parameters()), "the weights are not spread"
    save(engine.module, config, out / name)
    assert is_sharding()
"""


def two_processes(script: str, *arguments: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    shared |= {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", START + script, *map(str, arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)


def stepped(init: Path, adapters: bool) -> Any:
    """The same step in one process that holds everything."""
    import torch

    model = load_model(init, config=TrainingConfig(lora=adapters, dtype="fp32", lora_r=4, lora_dropout=0.0))
    rows = torch.arange(4, 44)[None]
    model(input_ids=rows, labels=rows).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter -= 0.1 * parameter.grad
    return model.merge_and_unload() if adapters else model


def assert_holds(folder: Path, model: Any) -> None:
    """The saved folder loads in plain transformers and holds the model's weights."""
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(str(folder)).state_dict()
    for name, value in model.state_dict().items():
        assert float((again[name] - value).abs().max()) < 1e-6, name


@pytest.mark.slow
def test_weights_spread_by_fsdp_are_saved_whole(tiny: Path, tmp_path: Path) -> None:
    two_processes(FSDP, tiny, tmp_path)
    for name in ("full", "lora"):
        assert_holds(tmp_path / name, stepped(tiny, name == "lora"))
        assert (tmp_path / name / "adapter").is_dir() is (name == "lora")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
def test_weights_spread_by_zero_3_are_saved_whole(tiny: Path, tmp_path: Path) -> None:
    two_processes(ZERO, tiny, tmp_path)
    for name in ("full", "lora"):
        assert_holds(tmp_path / name, stepped(tiny, name == "lora"))
        assert (tmp_path / name / "adapter").is_dir() is (name == "lora")


def test_alone_every_saved_weight_is_there_once(make_tiny: Any, tmp_path: Path) -> None:
    import torch

    model = load_model(make_tiny(tmp_path / "m", tied=True))
    model.register_buffer("kept", torch.ones(2))
    model.register_buffer("passing", torch.ones(2), persistent=False)
    found = gathered(model)
    assert found.keys() == model.state_dict().keys() - {"lm_head.weight"}
    assert all(torch.equal(found[name], model.state_dict()[name]) for name in found)
    assert gathered(model, leads=False) == {}


def test_names_are_those_of_the_model_without_wrappers(tiny: Path) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = load_model(tiny)
    names = gathered(model).keys()
    model.model.layers[0] = checkpoint_wrapper(model.model.layers[0])
    assert any("_checkpoint_wrapped_module" in name for name, _ in model.named_parameters())
    assert gathered(model).keys() == names


def test_models_are_made_whole_while_an_engine_would_spread_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import deepspeed

    class Spreading:
        def is_zero3(self) -> bool:
            return True

    told = Spreading()
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    assert not is_sharding()
    deepspeed.set_hf_deepspeed_config(told)
    assert is_sharding()
    with whole_models():
        assert not is_sharding()
    assert is_sharding()
