"""Whether a folder can be trained here is decided before torch is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.errors import EnvironmentFault, IntegrityError
from zephyrctl.training import footprint

MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}


def folder(path: Path, config: dict[str, Any] | None = None, *files: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or MISTRAL_7B), encoding="utf-8")
    for name in files:
        (path / name).write_bytes(b"x")
    return path


def test_parameters_of_mistral_7b() -> None:
    assert footprint.count_parameters(MISTRAL_7B) == 7_241_732_096
    assert footprint.count_parameters({"model_type": "mamba"}) is None


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_built_model(make_tiny: Any, tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    built = make_tiny(tmp_path / "m", tied=tied)
    model = AutoModelForCausalLM.from_pretrained(str(built))
    shape = footprint.read_shape(built)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.context == 2048
    footprint.check_trainable(built, reference=True)


def test_missing_weights_say_what_lacks_and_what_it_would_need(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        footprint.check_trainable(folder(tmp_path / "m"), reference=False)
    assert caught.value.exit_code == 3
    assert "7.2 B-parameter model" in caught.value.message
    assert "needs model.safetensors" in caught.value.message
    assert "108 GiB" in caught.value.message


def test_too_little_memory_is_said_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "available_bytes", lambda: 23 * 1024**3)
    monkeypatch.setattr(footprint, "gpu_bytes", lambda: None)
    model = folder(tmp_path / "m", None, "model.safetensors")
    with pytest.raises(EnvironmentFault, match=r"about 108 GiB .*this machine has 23 GiB"):
        footprint.check_trainable(model, reference=False)
    with pytest.raises(EnvironmentFault, match=r"about 135 GiB .*reference model"):
        footprint.check_trainable(model, reference=True)
    monkeypatch.setattr(footprint, "gpu_bytes", lambda: 141 * 1024**3)
    footprint.check_trainable(model, reference=True)


def test_shards_are_checked_by_name(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", None, "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    shape = footprint.read_shape(model)
    with pytest.raises(EnvironmentFault, match=r"1 of its 2 weight files are missing: b\.safetensors"):
        footprint.check_weights(model, shape)
    (model / "b.safetensors").write_bytes(b"x")
    footprint.check_weights(model, shape)
    (model / "model.safetensors.index.json").write_text("[]", encoding="utf-8")
    with pytest.raises(IntegrityError):
        footprint.check_weights(model, shape)


def test_weights_that_can_run_code_are_refused(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", None, "pytorch_model.bin")
    with pytest.raises(EnvironmentFault, match="can run code"):
        footprint.check_weights(model, footprint.read_shape(model))


def test_what_is_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"no config\.json"):
        footprint.read_shape(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(IntegrityError):
        footprint.read_shape(tmp_path)


def test_memory_of_this_machine_is_known() -> None:
    have = footprint.available_bytes()
    assert have is not None
    assert have > 0
