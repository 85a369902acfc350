"""Frozen weights in 4 bits: what is held how, what trains, and that the unquantised model is what gets the change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import UsageError
from zephyrctl.training import lora, model
from zephyrctl.training.gather import gathered
from zephyrctl.training.lora import Base, LoraSettings
from zephyrctl.training.model import load_model, require_change, save_model
from zephyrctl.training.settings import TrainingConfig


@pytest.fixture(scope="module")
def packages() -> None:
    """Skips where bitsandbytes is not installed (the `qlora` extra)."""
    pytest.importorskip("bitsandbytes", reason="4-bit weights need the qlora extra")


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {"lora": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "quantize": "nf4", **values}
    )


def one_step(adapted: Any) -> tuple[float, float]:
    """The loss before and after a step on one sequence."""
    import torch

    rows = torch.arange(4, 44)[None]
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    losses = []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = adapted(input_ids=rows, labels=rows).loss
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 0.5 * parameter.grad
                parameter.grad = None
    return losses[0], losses[1]


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("tied", [True, False])
def test_matrices_are_held_in_four_bits_and_adapters_in_float32(
    make_tiny: Any, tmp_path: Path, tied: bool
) -> None:
    import torch

    adapted = load_model(make_tiny(tmp_path / "m", tied=tied), config=config())
    kinds = {name: p.dtype for name, p in adapted.named_parameters()}
    assert kinds["base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"] == torch.uint8
    assert kinds["base_model.model.model.embed_tokens.weight"] == torch.float32
    assert kinds["base_model.model.model.norm.weight"] == torch.float32
    assert kinds.get("base_model.model.lm_head.weight") == (None if tied else torch.bfloat16)
    assert {k for n, k in kinds.items() if "lora_" in n} == {torch.float32}
    assert all(("lora_" in n) == p.requires_grad for n, p in adapted.named_parameters())
    quantized = adapted.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.quant_state
    assert (quantized.quant_type, quantized.nested, quantized.blocksize) == ("nf4", True, 64)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_step_changes_the_unquantised_model_by_what_the_adapter_learnt(
    tiny: Path, tmp_path: Path, dtype: str
) -> None:
    import torch
    from safetensors.torch import load_file

    wanted = config(dtype=dtype)
    adapted = load_model(tiny, config=wanted)
    before, after = one_step(adapted)
    assert after < before
    settings = LoraSettings.of(wanted)
    assert settings is not None
    state = gathered(adapted, trainable=True)
    save_model(
        adapted, load_tokenizer(tiny), tmp_path / "s", dtype, init=tiny, state=state, lora=settings,
        base=Base("tiny", "sha256:0"),
    )  # fmt: skip
    start, end = (
        load_file(str(tiny / "model.safetensors")),
        load_file(str(tmp_path / "s" / "model.safetensors")),
    )
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    changes = dict(lora.products(lora.adapter_state(state), settings))
    assert len(changes) == 14
    for name, value in end.items():
        assert torch.equal(value, (start[name] + changes.get(name, 0.0)).to(kind)), name
    assert require_change(tiny, tmp_path / "s", dtype) > 0
    assert "quantization_config" not in (tmp_path / "s" / "config.json").read_text(encoding="utf-8")
    load_model(tmp_path / "s")


@pytest.mark.usefixtures("packages")
def test_a_reference_is_the_quantised_model_with_its_adapters_off(tiny: Path) -> None:
    import torch

    adapted = load_model(tiny, config=config(dtype="fp32")).eval()
    rows = torch.arange(4, 44)[None]
    with torch.no_grad():
        fresh = adapted(input_ids=rows).logits
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter += 0.2
        assert not torch.equal(adapted(input_ids=rows).logits, fresh)
        with adapted.disable_adapter():
            assert torch.equal(adapted(input_ids=rows).logits, fresh)
        whole = load_model(tiny).eval()(input_ids=rows).logits
    # Four bits are a coarse grid: near the model they were made from, and not that model.
    assert 1e-4 < float((fresh - whole).abs().mean() / whole.abs().mean()) < 0.2


@pytest.mark.usefixtures("packages")
def test_a_look_at_held_out_rows_changes_nothing_in_training(tiny: Path) -> None:
    import torch

    adapted, rows = load_model(tiny, config=config()), torch.arange(4, 44)[None]
    losses = []
    for looked in (False, True):
        if looked:
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                adapted.eval()(input_ids=rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(adapted.train()(input_ids=rows, labels=rows).loss)
    assert torch.equal(losses[0], losses[1])


def test_four_bits_are_refused_where_an_engine_spreads_the_weights(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "is_sharding", lambda: True)
    monkeypatch.setattr(lora, "need_lora_packages", lambda settings: None)
    with pytest.raises(UsageError, match="4 bits"):
        load_model(tiny, config=config())
