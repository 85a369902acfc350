"""Models in and out: the dtype asked for, what ends an answer, nothing of this machine, nothing pickled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.models import check_model_folder
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import EnvironmentFault, MissingExtra, StageRejected
from zephyrctl.training import model
from zephyrctl.training.model import load_model, need_training_packages, require_change, save_model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_saved_weights_are_those_in_memory_in_the_dtype_asked_for(
    make_tiny: Any, tmp_path: Path, dtype: str, tied: bool
) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder = make_tiny(tmp_path / "m", tied=tied)
    model = load_model(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    save_model(model, load_tokenizer(folder), tmp_path / "saved", dtype)
    wanted = torch.bfloat16 if dtype == "bf16" else torch.float32
    saved = load_file(str(tmp_path / "saved" / "model.safetensors"))
    assert {value.dtype for value in saved.values()} == {wanted}
    assert ("lm_head.weight" in saved) is not tied
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "saved"))
    assert next(again.parameters()).dtype == wanted
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.to(wanted)), name


def test_a_saved_folder_holds_a_model_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny, system="be kind")
    save_model(load_model(tiny), tokenizer, tmp_path / "saved", "fp32")
    names = {p.name for p in (tmp_path / "saved").iterdir()}
    assert names == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    texts = "".join(p.read_text(encoding="utf-8") for p in (tmp_path / "saved").glob("*.json"))
    assert str(tiny) not in texts
    generation = json.loads((tmp_path / "saved" / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert load_tokenizer(tmp_path / "saved").chat_template == tokenizer.chat_template


def test_every_token_that_ends_an_answer_is_named(tiny: Path, tmp_path: Path) -> None:
    model = load_model(tiny)
    model.generation_config.eos_token_id = [7, 5]
    save_model(model, load_tokenizer(tiny), tmp_path / "saved", "fp32")
    generation = json.loads((tmp_path / "saved" / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [1, 7, 5]


def test_equal_models_give_equal_bytes(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    for source, target in ((tiny, "a"), (copy, "b")):
        save_model(load_model(source), load_tokenizer(source), tmp_path / target, "bf16")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("tied", [True, False])
def test_large_models_are_saved_in_several_files_with_an_index(
    make_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_tiny(tmp_path / "m", tied=tied)
    loaded = load_model(folder)
    with torch.no_grad():
        loaded.model.norm.weight += 1.0
    monkeypatch.setattr(model, "SHARD", "100KB")
    for name in ("a", "b"):
        save_model(loaded, load_tokenizer(folder), tmp_path / name, "fp32")
    shards = sorted(p.name for p in (tmp_path / "a").glob("*.safetensors"))
    assert len(shards) > 2
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert check_model_folder(tmp_path / "a")
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert sorted(set(index["weight_map"].values())) == shards
    assert require_change(folder, tmp_path / "a", "fp32") == 1
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "a")).state_dict()
    assert all(torch.equal(again[name], value) for name, value in loaded.state_dict().items())


def test_weights_held_elsewhere_are_the_ones_saved(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    loaded = load_model(tiny)
    state = {name: value * 2 for name, value in loaded.state_dict().items() if name != "lm_head.weight"}
    save_model(loaded, load_tokenizer(tiny), tmp_path / "s", "fp32", state=state)
    saved = load_file(str(tmp_path / "s" / "model.safetensors"))
    assert saved.keys() == state.keys()
    assert all((saved[name] == state[name]).all() for name in saved)
    del state["model.norm.weight"]
    with pytest.raises(RuntimeError, match=r"model\.norm\.weight"):
        save_model(loaded, load_tokenizer(tiny), tmp_path / "t", "fp32", state=state)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_the_one_asked_for(tiny: Path, attention: str) -> None:
    assert load_model(tiny, attention=attention).config._attn_implementation == attention


def test_dropout_is_off(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}), encoding="utf-8")
    assert load_model(folder).model.layers[0].self_attn.attention_dropout == 0.0


def test_weights_that_did_not_change_are_refused(tiny: Path, tmp_path: Path) -> None:
    import torch

    model = load_model(tiny)
    save_model(model, load_tokenizer(tiny), tmp_path / "same", "bf16")
    with pytest.raises(StageRejected, match="changed no weight"):
        require_change(tiny, tmp_path / "same", "bf16")
    with torch.no_grad():
        model.model.norm.weight += 1e-5
    save_model(model, load_tokenizer(tiny), tmp_path / "little", "bf16")
    with pytest.raises(StageRejected, match="bf16"):
        require_change(tiny, tmp_path / "little", "bf16")
    save_model(model, load_tokenizer(tiny), tmp_path / "full", "fp32")
    assert require_change(tiny, tmp_path / "full", "fp32") == 1


def test_a_folder_that_makes_no_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    (folder / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(EnvironmentFault, match="cannot be loaded"):
        load_model(folder)


def test_a_missing_package_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        need_training_packages()
    assert caught.value.hint == "pip install 'zephyrctl[train]'"
