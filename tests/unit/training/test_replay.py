"""Two checkpoints are the same exactly where every bit that matters is, whichever engine wrote them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zephyrctl.training import checkpoint
from zephyrctl.training.replay import compare_checkpoints

Change = Callable[[Path], None]


def optimiser_state() -> dict[str, Any]:
    return {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.linspace(-1, 1, 12).reshape(3, 4)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "foreach": None}],
    }


def random_state() -> dict[str, Any]:
    numbers = np.random.RandomState(7).get_state()
    return {"python": random.Random(7).getstate(), "numpy": numbers, "cpu": torch.arange(40).byte()}


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file(
        {"w": torch.linspace(0, 1, 10), "b": torch.tensor([0.0, float("nan")], dtype=torch.bfloat16)},
        folder / "model.safetensors",
    )
    torch.save(optimiser_state(), folder / "optimizer.pt")
    torch.save({"last_epoch": 3, "_last_lr": [1e-4]}, folder / "scheduler.pt")
    torch.save(random_state(), folder / "rng_state.pth")
    torch.save({"output_dir": str(folder)}, folder / "training_args.bin")
    state = {"global_step": 3, "log_history": [{"step": 3, "loss": 0.5, "train_runtime": random.random()}]}
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5}\n', encoding="utf-8")
    (folder / "timing.jsonl").write_text(json.dumps({"seconds": random.random()}) + "\n", encoding="utf-8")
    return folder


def test_the_same_values_in_other_bytes_are_the_same(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a" / "checkpoint-3"), write(tmp_path / "b" / "checkpoint-3")
    state = optimiser_state()
    torch.save({"param_groups": state["param_groups"], "state": state["state"]}, b / "optimizer.pt")
    assert (a / "optimizer.pt").read_bytes() != (b / "optimizer.pt").read_bytes()
    assert (a / "trainer_state.json").read_bytes() != (b / "trainer_state.json").read_bytes()
    assert compare_checkpoints(a, b) == []
    checkpoint.seal(a, 3)
    checkpoint.seal(b, 3)
    assert compare_checkpoints(a, b) == []


def weight_bit(folder: Path) -> None:
    weights = torch.linspace(0, 1, 10)
    weights.view(torch.int32)[4] ^= 1
    save_file(
        {"w": weights, "b": torch.tensor([0.0, float("nan")], dtype=torch.bfloat16)},
        folder / "model.safetensors",
    )


def minus_zero(folder: Path) -> None:
    save_file(
        {
            "w": torch.linspace(0, 1, 10),
            "b": torch.tensor([-0.0, float("nan")], dtype=torch.bfloat16),
        },
        folder / "model.safetensors",
    )


def moment(folder: Path) -> None:
    state = optimiser_state()
    state["state"][0]["exp_avg"][1, 2] += 1e-6
    torch.save(state, folder / "optimizer.pt")


def group(folder: Path) -> None:
    state = optimiser_state()
    state["param_groups"][0]["betas"] = (0.9, 0.99)
    torch.save(state, folder / "optimizer.pt")


def schedule(folder: Path) -> None:
    torch.save({"last_epoch": 4, "_last_lr": [1e-4]}, folder / "scheduler.pt")


def dice(folder: Path) -> None:
    torch.save({**random_state(), "python": random.Random(8).getstate()}, folder / "rng_state.pth")


def numpy_dice(folder: Path) -> None:
    torch.save({**random_state(), "numpy": np.random.RandomState(8).get_state()}, folder / "rng_state.pth")


def metric(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5000001}\n', encoding="utf-8")


def logged(folder: Path) -> None:
    body = {"global_step": 3, "log_history": [{"step": 3, "loss": 0.6}]}
    (folder / "trainer_state.json").write_text(json.dumps(body), encoding="utf-8")


def odd_file(folder: Path) -> None:
    (folder / "latest").write_text("global_step3", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (weight_bit, "model.safetensors: w differs in 1 of 10 values"),
        (minus_zero, "model.safetensors: b differs in 1 of 2 values"),
        (moment, "optimizer.pt: state/0/exp_avg differs in 1 of 12 values"),
        (group, "optimizer.pt: param_groups/0/betas/1 is 0.999 in one, 0.99 in the other"),
        (schedule, "scheduler.pt: last_epoch is 3 in one, 4 in the other"),
        (dice, "rng_state.pth: python/1/1 is"),
        (numpy_dice, "rng_state.pth: numpy/1 differs in 624 of 624 values"),
        (metric, "metrics.jsonl: 0/loss is 0.5 in one, 0.5000001 in the other"),
        (logged, "trainer_state.json: log_history/0/loss is 0.5 in one, 0.6 in the other"),
        (odd_file, "latest is only in"),
    ],
)
def test_every_difference_is_named(tmp_path: Path, change: Change, said: str) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    change(b)
    found = compare_checkpoints(a, b)
    assert found
    assert found[0].startswith(said)
    assert bool(compare_checkpoints(b, a))


def test_another_shape_or_a_missing_tensor_is_named(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    save_file({"w": torch.zeros(4), "c": torch.zeros(1)}, b / "model.safetensors")
    assert compare_checkpoints(a, b) == [
        "model.safetensors: b is in one of the two only",
        "model.safetensors: c is in one of the two only",
        "model.safetensors: w is torch.float32[10] in one, torch.float32[4] in the other",
    ]


def test_a_distributed_checkpoint_is_read_whole(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    for name, change in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        state = {"w": torch.linspace(0, 1, 8), "v": torch.full((2,), change)}
        order = state if name != "b" else dict(reversed(state.items()))
        save(order, checkpoint_id=tmp_path / name / "pytorch_model_fsdp_0", no_dist=True)
    assert compare_checkpoints(tmp_path / "a", tmp_path / "b") == []
    assert compare_checkpoints(tmp_path / "a", tmp_path / "c") == [
        "pytorch_model_fsdp_0: v differs in 2 of 2 values, by 1 at most"
    ]


def test_what_the_trainer_was_about_to_do_is_not_compared(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a" / "checkpoint-3"), write(tmp_path / "b" / "checkpoint-3")
    for folder, stops in ((a, True), (b, False)):
        path = folder / "trainer_state.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        state |= {
            "stateful_callbacks": {"TrainerControl": {"should_training_stop": stops}},
            "total_flos": int(stops),
        }
        path.write_text(json.dumps(state), encoding="utf-8")
    assert compare_checkpoints(a, b) == []


def test_sets_that_peft_writes_in_any_order_are_sets(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a" / "checkpoint-3"), write(tmp_path / "b" / "checkpoint-3")
    for folder, modules in ((a, ["q_proj", "v_proj"]), (b, ["v_proj", "q_proj"])):
        body = {"r": 16, "target_modules": modules}
        (folder / "adapter_config.json").write_text(json.dumps(body), encoding="utf-8")
    assert compare_checkpoints(a, b) == []
    (b / "adapter_config.json").write_text(
        json.dumps({"r": 16, "target_modules": ["q_proj"]}), encoding="utf-8"
    )
    assert "target_modules" in compare_checkpoints(a, b)[0]
