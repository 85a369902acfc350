"""Arithmetic of training in floating-point operations, and what GPUs can do at best. Pure functions.

The count per token is the one of Chowdhery et al. 2022 (PaLM), appendix B: 6 operations per weight that is
multiplied (2 forward, 4 backward) and 12 per layer, attention channel and attended position. Two things differ, both
so that nothing is counted that need not be computed: a token attends to what stands before it in its own row only,
and the table of input embeddings, which is looked up, is no multiplication. Recomputed activations are work of the
machine but not of the model: they never raise an MFU (model FLOPs utilisation).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zephyrctl.training.footprint import Shape

_PEAKS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500e12), ("B200", 2250e12), ("GH200", 989e12), ("H200", 989e12), ("H100 NVL", 835e12),
    ("H100 PCIE", 756e12), ("H100", 989e12), ("H800", 989e12), ("A100", 312e12), ("A800", 312e12),
    ("MI300X", 1307e12), ("L40S", 362e12), ("L40", 181e12), ("L4", 121e12), ("A6000", 155e12), ("A40", 150e12),
    ("A10", 125e12), ("RTX 6000 ADA", 364e12), ("RTX 5090", 209e12), ("RTX 4090", 165e12), ("RTX 3090", 71e12),
)  # fmt: skip
"""Dense bfloat16 operations a second with float32 accumulation, from the makers' data sheets; more specific names
first."""


@dataclass(frozen=True)
class Work:
    """Operations of one token in training: `forward`, `backward`, and `again` for recomputed activations."""

    forward: float
    backward: float
    again: float = 0.0

    @property
    def model(self) -> float:
        """What the model needs: the numerator of an MFU."""
        return self.forward + self.backward

    @property
    def machine(self) -> float:
        """What the machine computes, recomputation included."""
        return self.model + self.again


def peak_flops(gpu: str) -> float | None:
    """Dense bfloat16 operations a second of a GPU named as its driver names it; None where it is not in the table."""
    name = gpu.upper().replace("-", " ")
    for known, peak in _PEAKS:
        if names_gpu(known, name) or names_gpu(known.replace("RTX ", ""), name):
            return peak
    return None


def names_gpu(known: str, name: str) -> bool:
    """Whether `known` stands in `name` as a word of its own: an A4000 is no A40, an RTX4090 is a 4090."""
    return re.search(rf"(?<![A-Z0-9])(RTX ?)?{re.escape(known)}(?![A-Z0-9])", name.upper()) is not None


def mean_context(lengths: Iterable[int]) -> float:
    """Positions that a token attends to on average, itself included, in rows of these lengths: Σ l(l+1)/2 / Σ l."""
    tokens = pairs = 0
    for length in lengths:
        tokens += length
        pairs += length * (length + 1) // 2
    return pairs / tokens if tokens else 0.0


def flops_per_token(
    shape: Shape, context: float, *, lora: bool = False, recompute: bool = False
) -> Work | None:
    """Operations per token where tokens attend to `context` positions on average; None for a model that cannot be
    counted.

    With `lora` the frozen weights get no gradient (2 forward, 2 backward per weight); the adapters' own work, well
    below one hundredth, is left out. A sliding window bounds the positions.
    """
    if shape.multiplied is None or shape.attention_width is None or shape.layers is None:
        return None
    attended = min(context, float(shape.window)) if shape.window else context
    attention = 4.0 * shape.layers * shape.attention_width * attended
    weights = 2.0 * shape.multiplied
    forward = weights + attention
    backward = (1 if lora else 2) * weights + 2 * attention
    return Work(forward, backward, forward if recompute else 0.0)


def mfu(
    shape: Shape, context: float, tokens_per_second: float, peak: float, *, lora: bool = False
) -> float | None:
    """The share of `peak` (operations a second of all devices together) that the model's arithmetic reaches."""
    work = flops_per_token(shape, context, lora=lora)
    return None if work is None or peak <= 0 else work.model * tokens_per_second / peak
