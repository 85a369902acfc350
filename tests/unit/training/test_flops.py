"""The arithmetic of training, against PaLM's formula and against what torch counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.training.flops import flops_per_token, mean_context, mfu, peak_flops
from zephyrctl.training.footprint import Shape, read_shape
from zephyrctl.training.known_shapes import known_shape

MISTRAL = known_shape("mistralai/Mistral-7B-v0.1")


def test_mistral_7b_is_near_six_operations_a_parameter() -> None:
    short = flops_per_token(MISTRAL, 1)
    assert short is not None
    assert MISTRAL.parameters is not None
    assert short.model == pytest.approx(6 * MISTRAL.parameters, rel=0.02)
    long = flops_per_token(MISTRAL, 2048)
    assert long is not None
    # PaLM, appendix B: 12 · layers · width · positions
    assert long.model - short.model == pytest.approx(12 * 32 * 4096 * 2047)


def test_forward_is_what_torch_counts(tiny: Path) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny), attn_implementation="eager")
    rows, length = 2, 48
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(rows, length, dtype=torch.long))
    work = flops_per_token(read_shape(tiny), length)  # eager attention computes what causality hides, too
    assert work is not None
    assert counter.get_total_flops() == pytest.approx(work.forward * rows * length, rel=0.02)


def test_adapters_save_the_weights_gradients_and_recomputation_is_no_model_work() -> None:
    full, lora = flops_per_token(MISTRAL, 1), flops_per_token(MISTRAL, 1, lora=True, recompute=True)
    assert full is not None
    assert lora is not None
    assert lora.model / full.model == pytest.approx(2 / 3, rel=0.01)
    assert lora.again == lora.forward
    assert lora.machine == lora.model + lora.forward


def test_a_sliding_window_bounds_attention() -> None:
    assert flops_per_token(MISTRAL, 100_000) == flops_per_token(MISTRAL, 4096)


def test_what_cannot_be_counted_is_none() -> None:
    assert flops_per_token(Shape("Mamba", None, None, 100), 10) is None
    assert mfu(Shape("Mamba", None, None, 100), 10, 1.0, 1.0) is None


@given(st.lists(st.integers(1, 50), max_size=20))
def test_mean_context_counts_every_earlier_token_once(lengths: list[int]) -> None:
    seen = [position + 1 for length in lengths for position in range(length)]
    assert mean_context(lengths) == pytest.approx(sum(seen) / len(seen) if seen else 0.0)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("A100-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A40", 150e12),
        ("RTX4090", 165e12),
        ("4090", 165e12),
        ("80GB", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA A10G", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_by_the_drivers_names(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_mfu_of_a_published_run() -> None:
    """llm-foundry's table: a 7B model, 2048 tokens, 10,643 tokens a second on each H100, stated as 46.4 %."""
    reached = mfu(MISTRAL, 2048, 10_643, 989e12)
    assert reached == pytest.approx(0.464, rel=0.1)
