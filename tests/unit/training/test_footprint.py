"""Whether a folder can be trained here is decided before torch is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.errors import EnvironmentFault, IntegrityError, RefNotFound
from zephyrctl.training import footprint
from zephyrctl.training.known_shapes import known_shape

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
    footprint.check_weights(built, shape)


def test_missing_weights_say_what_lacks_and_what_it_would_need(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        footprint.check_weights(folder(tmp_path / "m"), footprint.shape_of(MISTRAL_7B))
    assert caught.value.exit_code == 3
    assert "7.2 B-parameter model" in caught.value.message
    assert "needs model.safetensors" in caught.value.message
    assert "108 GiB" in caught.value.message


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


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
        ("Qwen/Qwen3-0.6B-Base", 596_049_920),
        ("qwen/qwen2.5-0.5b", 494_032_768),
        ("hf://google/gemma-2b", 2_506_172_416),
        ("HuggingFaceTB/SmolLM2-135M@main", 134_515_008),
    ],
)
def test_known_models_have_the_parameters_they_were_published_with(name: str, parameters: int) -> None:
    assert known_shape(name).parameters == parameters


def test_what_the_table_does_not_know() -> None:
    with pytest.raises(RefNotFound, match="shape of 'org/other'") as caught:
        known_shape("org/other")
    assert "Mistral-7B" in (caught.value.hint or "")


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma", "gemma3_text", "olmo2", "llama"])
def test_parameters_are_those_that_transformers_builds(family: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = footprint.shape_of(config.to_dict())
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_shapes_that_are_not_plain() -> None:
    nested = {"architectures": ["SeeingModel"], "model_type": "sees", "text_config": MISTRAL_7B}
    assert footprint.shape_of(nested).parameters == 7_241_732_096
    experts = footprint.shape_of({**MISTRAL_7B, "num_local_experts": 8})
    assert experts.parameters is None
    assert footprint.shape_of({**MISTRAL_7B, "sliding_window": 4096}).window == 4096
    assert (
        footprint.shape_of({**MISTRAL_7B, "sliding_window": 4096, "use_sliding_window": False}).window is None
    )
    assert footprint.shape_of({"model_type": "mamba"}).linear is None
