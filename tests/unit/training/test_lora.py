"""Adapters: put on without a change, drawn from the seed alone, merged as trained, kept for others to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.artifacts.models import ModelSource
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import IntegrityError, MissingExtra, UsageError
from zephyrctl.training import lora
from zephyrctl.training.gather import gathered
from zephyrctl.training.lora import Base, LoraSettings
from zephyrctl.training.model import load_model, require_change, save_model
from zephyrctl.training.settings import TrainingConfig

BASE = Base("sft-e1@v1", "sha256:" + "0" * 64)


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {"lora": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "dtype": "fp32", **values}
    )


def settings(wanted: TrainingConfig) -> LoraSettings:
    found = LoraSettings.of(wanted)
    assert found is not None
    return found


def logits(model: Any, *, bf16: bool = False) -> Any:
    import torch

    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        return model(input_ids=torch.arange(4, 44)[None]).logits


def trained(folder: Path, wanted: TrainingConfig) -> Any:
    """A model whose adapters have left zero, as after some steps."""
    import torch

    model = load_model(folder, config=wanted)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def save(model: Any, init: Path, folder: Path, wanted: TrainingConfig, **values: Any) -> Path:
    save_model(
        model,
        load_tokenizer(init),
        folder,
        wanted.dtype,
        init=init,
        lora=settings(wanted),
        base=BASE,
        **values,
    )
    return folder


def test_settings_without_lora_ask_for_no_adapter() -> None:
    assert LoraSettings.of(TrainingConfig()) is None
    assert settings(config()).scale == 2.0


def test_a_base_is_named_without_any_place_on_this_machine() -> None:
    def named(place: str, ref: str) -> Base:
        return Base.of(ModelSource(Path(place), "sha256:ab", ref, "real", None))

    assert named("/home/me/models/mine", "/home/me/models/mine") == Base("mine", "sha256:ab")
    assert named("/usr/lib/zephyrctl/base", "sandbox") == Base("sandbox", "sha256:ab")
    assert named(".", "./").name == Path.cwd().name
    assert named("/bundle/models/a", "hf://org/a--b@0123") == Base("org/a--b", "sha256:ab")
    hub = "/home/me/.cache/huggingface/hub/models--org--a--b/snapshots/0123"
    assert named(hub, hub) == Base("org/a--b", "sha256:ab")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stored", ["fp32", "bf16"])
@pytest.mark.parametrize("tied", [True, False])
def test_fresh_adapters_change_no_bit_of_what_the_model_says(
    make_tiny: Any, tmp_path: Path, dtype: str, stored: str, tied: bool
) -> None:
    import torch

    init = make_tiny(tmp_path / "m", tied=tied)
    if stored == "bf16":
        save_model(load_model(init), load_tokenizer(init), tmp_path / "b", "bf16")
        init = tmp_path / "b"
    model, plain = load_model(init, config=config(dtype=dtype)), load_model(init)
    assert torch.equal(logits(model, bf16=dtype == "bf16"), logits(plain, bf16=dtype == "bf16"))
    kinds = {n: p.dtype for n, p in model.named_parameters()}
    assert {kinds[n] for n, p in model.named_parameters() if p.requires_grad} == {torch.float32}
    assert all(("lora_" in n) == p.requires_grad for n, p in model.named_parameters())
    narrow = torch.bfloat16 if dtype == "bf16" else torch.float32
    assert kinds["base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"] == narrow
    assert kinds["base_model.model.model.norm.weight"] == torch.float32


def test_adapters_come_from_the_seed_alone(tiny: Path) -> None:
    import torch

    drawn = []
    for outside, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(outside)
        before = torch.get_rng_state()
        model = load_model(tiny, config=config(seed=seed))
        drawn.append(lora.adapter_state(model.state_dict()))
        assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not all(torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])


def test_every_linear_layer_but_the_head_gets_one(make_tiny: Any, tmp_path: Path) -> None:
    model = load_model(make_tiny(tmp_path / "m", tied=False), config=config())
    wanted = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert model.peft_config["default"].target_modules == set(wanted)
    assert sum(".lora_A." in name for name, _ in model.named_parameters()) == 2 * len(wanted)
    assert lora.targets_of(model.get_base_model(), settings(config())) == wanted


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "proj", "nothing"])
def test_a_target_that_can_have_no_adapter_is_refused(tiny: Path, target: str) -> None:
    with pytest.raises(UsageError, match=f"'{target}'") as caught:
        load_model(tiny, config=config(lora_targets=["q_proj", target]))
    assert "q_proj" in str(caught.value.hint)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_model_without_linear_layers_is_refused(quantize: str, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    if quantize == "nf4":
        pytest.importorskip("bitsandbytes", reason="needs the qlora extra")
    sizes = GPT2Config(vocab_size=300, n_embd=64, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(sizes).save_pretrained(tmp_path / "m")
    with pytest.raises(UsageError, match="no linear layers"):
        load_model(tmp_path / "m", config=config(quantize=quantize))


def test_named_targets_are_the_only_ones(tiny: Path, tmp_path: Path) -> None:
    wanted = config(lora_targets=["v_proj", "model.layers.1.mlp.up_proj"])
    folder = save(trained(tiny, wanted), tiny, tmp_path / "s", wanted)
    assert require_change(tiny, folder, "fp32") == 3
    stored = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert stored["target_modules"] == ["model.layers.1.mlp.up_proj", "v_proj"]


@pytest.mark.parametrize("tied", [True, False])
def test_the_saved_model_says_what_the_trained_one_said(make_tiny: Any, tmp_path: Path, tied: bool) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    init, wanted = make_tiny(tmp_path / "m", tied=tied), config()
    model = trained(init, wanted)
    folder = save(model, init, tmp_path / "saved", wanted)
    said = logits(model)
    assert float((said - logits(load_model(init))).abs().max()) > 0.1
    again = AutoModelForCausalLM.from_pretrained(str(folder))
    assert float((said - logits(again)).abs().max()) < 1e-5
    on_base = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(str(init)), str(folder / "adapter")
    )
    assert float((said - logits(on_base)).abs().max()) < 1e-6
    assert require_change(init, folder, "fp32") == 14


def test_merging_adds_in_float32_and_rounds_once(tiny: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    wanted = config(dtype="bf16")
    model = trained(tiny, wanted)
    folder = save(model, tiny, tmp_path / "saved", wanted)
    start, end = load_file(str(tiny / "model.safetensors")), load_file(str(folder / "model.safetensors"))
    layer = model.base_model.model.model.layers[1].self_attn.v_proj
    change = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    name = "model.layers.1.self_attn.v_proj.weight"
    assert torch.equal(end[name], (start[name] + change).to(torch.bfloat16))
    assert torch.equal(end["model.norm.weight"], start["model.norm.weight"].to(torch.bfloat16))


def test_gathered_adapters_give_the_same_bytes_as_the_model_itself(tiny: Path, tmp_path: Path) -> None:
    wanted = config()
    model = trained(tiny, wanted)
    one = save(model, tiny, tmp_path / "one", wanted)
    two = save(model, tiny, tmp_path / "two", wanted, state=gathered(model, trainable=True))
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert [p for p in files if p.parts[0] == "adapter"] == [
        Path("adapter/adapter_config.json"), Path("adapter/adapter_model.safetensors"), Path("adapter/base.json"),
    ]  # fmt: skip
    for path in files:
        assert (one / path).read_bytes() == (two / path).read_bytes(), path
    texts = "".join(p.read_text(encoding="utf-8") for p in one.rglob("*.json"))
    assert str(tiny) not in texts
    assert str(tmp_path) not in texts


def test_the_adapter_is_laid_out_as_peft_and_servers_read_it(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = save(trained(tiny, config()), tiny, tmp_path / "s", config()) / "adapter"
    told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert {k: told[k] for k in ("r", "lora_alpha", "bias", "use_dora", "use_rslora", "peft_type", "task_type")} == {
        "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": False, "use_rslora": False, "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    assert told["base_model_name_or_path"] == "sft-e1@v1"
    assert json.loads((folder / "base.json").read_text(encoding="utf-8")) == {
        "name": "sft-e1@v1",
        "digest": BASE.digest,
    }
    weights = load_file(str(folder / "adapter_model.safetensors"))
    first = weights["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    assert tuple(first.shape) == (4, 64)
    assert len(weights) == 28


def test_a_preference_run_after_an_adapter_run_starts_at_the_merged_model(tiny: Path, tmp_path: Path) -> None:
    import torch

    wanted = config()
    folder = save(trained(tiny, wanted), tiny, tmp_path / "sft", wanted)
    artifact = logits(load_model(folder))
    policy = trained(folder, wanted)
    assert float((logits(policy) - artifact).abs().max()) > 0.1
    with policy.disable_adapter():
        assert torch.equal(logits(policy), artifact)


def test_what_trl_adds_to_an_adapted_model_is_taken_off(tiny: Path, tmp_path: Path) -> None:
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model = load_model(tiny, config=config())
    pairs = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    arguments = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = DPOTrainer(
        model=model, args=arguments, train_dataset=pairs, processing_class=load_tokenizer(tiny)
    )
    assert "ref" in trainer.model.peft_config
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    lora.settle(trainer.model)
    assert set(trainer.model.peft_config) == {"default"}
    names = {n: p for n, p in trainer.model.named_parameters() if "lora_" in n}
    assert len(names) == 28
    assert all(p.requires_grad and p.dtype == torch.float32 for p in names.values())


def test_an_adapter_that_does_not_fit_is_refused(tiny: Path, make_tiny: Any, tmp_path: Path) -> None:
    import torch

    with pytest.raises(IntegrityError, match="no adapter"):
        lora.adapter_state({"model.norm.weight": torch.ones(1)})
    one = {"base_model.model.x.lora_A.weight": torch.ones(2, 3)}
    with pytest.raises(IntegrityError, match="x is incomplete"):
        list(lora.products(one, settings(config())))
    both = {**one, "base_model.model.x.lora_B.weight": torch.ones(5, 2)}
    with pytest.raises(IntegrityError, match=r"does not fit.*x\.weight"):
        lora.merge({"x.weight": torch.ones(3, 5)}, both, settings(config()), torch.float32)


@given(rank=st.integers(1, 4), rows=st.integers(1, 5), columns=st.integers(1, 5), alpha=st.floats(0.5, 64))
def test_a_merge_is_alpha_over_rank_times_the_product(
    rank: int, rows: int, columns: int, alpha: float
) -> None:
    import torch

    generator = torch.Generator().manual_seed(rank + 10 * rows + 100 * columns)
    first, second = (torch.randn(s, generator=generator) for s in ((rank, columns), (rows, rank)))
    weight = torch.randn(rows, columns, generator=generator)
    weights = {"m.weight": weight.clone(), "other": weight.clone()}
    adapter = {"base_model.model.m.lora_A.weight": first, "base_model.model.m.lora_B.weight": second}
    lora.merge(weights, adapter, LoraSettings(rank, alpha), torch.float32)
    exact = weight.double() + alpha / rank * (second.double() @ first.double())
    assert torch.allclose(weights["m.weight"].double(), exact, rtol=1e-5, atol=1e-5 * alpha)
    assert torch.equal(weights["other"], weight)


def test_missing_packages_are_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else object())
    lora.need_lora_packages(settings(config()))
    with pytest.raises(MissingExtra) as caught:
        lora.need_lora_packages(settings(config(quantize="nf4")))
    assert "zephyrctl[qlora]" in str(caught.value.hint)
