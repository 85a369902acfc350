"""Memory that training takes, part by part, from a model's shape alone. Pure functions; every number is bytes.

Weights, gradients and optimiser states are counted after Rajbhandari et al. 2020 (ZeRO), section 3.1 and figure 1,
with the copies that the engines make beside them. Activations are the tensors that the layers of a Llama-like model
in transformers keep for the backward pass (h hidden channels, a of all query heads, k of all key heads, f of the gated
MLP), per token and layer:

    float32 weights under bfloat16 autocast   26h + 4a + 4k + 8f
    bfloat16 weights (ZeRO, FSDP2)            16h + 4a + 4k + 8f
    float32 throughout                        24h + 8a + 8k + 16f
    adapters under autocast                   18h + 6a + 4k + 8f, and their dropout masks

An estimate is for the fullest pass: `micro` rows of `max_length` tokens, each of which bears loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.footprint import Shape
from zephyrctl.training.hardware import GIB
from zephyrctl.training.settings import TrainingConfig

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight in 4 bits with doubly quantised scales: Dettmers et al. 2023 (QLoRA), section 3."""
_LIVE = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered at most, and that ZeRO updates at a time (DeepSpeed's defaults)."""
_READING = 128 << 20
"""Float32 pieces of the logits while log-probabilities are read, forward or backward."""
_CUDA = GIB
"""What CUDA, its libraries and NCCL take on a GPU."""
_RUNTIME = GIB // 2
"""What Python and torch take before a model is loaded."""

Where = Literal["device", "host"]


@dataclass(frozen=True)
class Part:
    """One kind of tensors of one process: on its device (GPU, or main memory without one) or in main memory."""

    name: str
    size: int
    where: Where = "device"


@dataclass(frozen=True)
class Estimate:
    """Memory of one process, by part."""

    parts: tuple[Part, ...]

    @property
    def device(self) -> int:
        """Bytes on the process's device at the fullest moment."""
        return sum(part.size for part in self.parts if part.where == "device")

    @property
    def host(self) -> int:
        """Bytes in main memory beside that."""
        return sum(part.size for part in self.parts if part.where == "host")

    def of(self, name: str) -> int:
        """Bytes of the parts of that name; 0 without one."""
        return sum(part.size for part in self.parts if part.name == name)


@dataclass(frozen=True)
class Counts:
    """Parameters by what happens to them."""

    trained: int
    frozen: int = 0

    @property
    def all(self) -> int:
        """Both together."""
        return self.trained + self.frozen


def count_trained(config: TrainingConfig, shape: Shape) -> Counts | None:
    """Which parameters are trained and which are frozen under adapters; None for a model that cannot be counted."""
    if shape.parameters is None or shape.linear is None:
        return None
    if not config.lora:
        return Counts(shape.parameters)
    return Counts(adapter_parameters(config, shape), shape.parameters)


def adapter_parameters(config: TrainingConfig, shape: Shape) -> int:
    """Parameters of the adapters: rank times inputs and outputs of each adapted linear layer."""
    h, a, k, f = _widths(shape)
    sizes = {
        "q_proj": h + a, "k_proj": h + k, "v_proj": h + k, "o_proj": a + h,
        "gate_proj": h + f, "up_proj": h + f, "down_proj": f + h,
    }  # fmt: skip
    wanted = config.lora_targets or list(sizes)
    return config.lora_r * (shape.layers or 0) * sum(sizes.get(name, 0) for name in wanted)


def estimate_memory(
    config: TrainingConfig, shape: Shape, choice: EngineChoice, *, micro: int
) -> Estimate | None:
    """Memory of each process that trains `micro` rows a pass; None for a model that cannot be counted."""
    counts = count_trained(config, shape)
    if counts is None:
        return None
    tokens = micro * config.max_length * (2 if config.stage == "dpo" else 1)
    parts = [
        *_states(config, counts, shape, choice),
        Part("activations", _activations(config, shape, choice, tokens)),
        Part("logits", _logits(config, shape, tokens)),
        Part("runtime", _CUDA if choice.device == "cuda" else _RUNTIME),
    ]
    return Estimate(tuple(part for part in parts if part.size > 0))


def _states(config: TrainingConfig, counts: Counts, shape: Shape, choice: EngineChoice) -> list[Part]:
    """Everything that does not grow with the rows."""
    by_engine = {"fsdp2": _fsdp2, "zero2": _zero, "zero3": _zero}
    return by_engine.get(choice.name, _whole)(config, counts, shape, choice)


def _whole(config: TrainingConfig, counts: Counts, shape: Shape, choice: EngineChoice) -> list[Part]:
    """One process, or DDP: every process holds everything, DDP its gradients twice (once in its buckets)."""
    n = counts.trained
    copied = 0 if config.dtype == "fp32" else counts.trained if not config.lora else 0
    paged = config.optimizer == "paged_adamw_32bit"
    return [
        Part("weights", 4 * n + _frozen(config, counts, shape, choice)),
        Part("bfloat16 copies", 2 * copied),
        Part("gradients", 4 * n),
        Part("optimiser states", _per_weight(config) * n, "host" if paged else "device"),
        Part("buffers", 4 * n if choice.name == "ddp" and choice.processes > 1 else 0),
    ]


def _zero(config: TrainingConfig, counts: Counts, shape: Shape, choice: EngineChoice) -> list[Part]:
    """DeepSpeed ZeRO-2 and ZeRO-3: weights in the arithmetic's type, float32 masters and states in shares."""
    world, n = choice.processes, counts.trained
    third, width = choice.name == "zero3", 4 if config.dtype == "fp32" else 2
    kept: Where = "host" if choice.offload else "device"
    share = -(-n // world)
    held = width * n + _frozen(config, counts, shape, choice)
    gathered = width * min(counts.all, _LIVE) if third and world > 1 else 0
    return [
        Part("weights", -(-held // world) if third else held, kept if third else "device"),
        Part("gradients", width * share, kept),
        Part("master weights", 4 * share, kept),
        Part("optimiser states", _per_weight(config) * share, kept),
        Part("gradients of a step", 4 * min(share, _LIVE), kept),
        Part("buffers", gathered + 2 * width * min(n, (shape.hidden or 0) ** 2)),
    ]


def _fsdp2(config: TrainingConfig, counts: Counts, shape: Shape, choice: EngineChoice) -> list[Part]:
    """FSDP2: float32 shares of everything, two gathered layers and what stands outside of layers, with their
    gradients."""
    world, n = choice.processes, counts.trained
    width = 4 if config.dtype == "fp32" else 2
    layer = (shape.linear or 0) // max(1, shape.layers or 1)
    outside = shape.embedding * (1 if shape.tied else 2)
    gathered = width * (2 * layer + outside) if world > 1 else 0
    reduced = width * (layer + outside) if world > 1 and not config.lora else 0
    return [
        Part("weights", -(-(4 * n + _frozen(config, counts, shape, choice)) // world)),
        Part("gradients", -(-4 * n // world)),
        Part("optimiser states", -(-_per_weight(config) * n // world)),
        Part("buffers", gathered + reduced),
    ]


def _per_weight(config: TrainingConfig) -> int:
    """Bytes of optimiser state per trained weight: two float32 moments for AdamW, one for RMSprop."""
    return 4 if config.optimizer == "rmsprop" else 8


def _frozen(config: TrainingConfig, counts: Counts, shape: Shape, choice: EngineChoice) -> int:
    """Bytes of the weights under the adapters. Where a process holds all of them, matrices are in the arithmetic's type
    or in 4 bits, embeddings and norms in float32; ZeRO casts all of them, FSDP2 none."""
    width = 2 if config.dtype == "bf16" else 4
    if choice.sharded:
        return counts.frozen * (4 if choice.name == "fsdp2" else width)
    linear = min(counts.frozen, shape.linear or 0)
    head = 0 if shape.tied else min(counts.frozen - linear, shape.embedding)
    packed = _NF4_BYTES if config.quantize == "nf4" else width
    return int(linear * packed + head * width + (counts.frozen - linear - head) * 4)


def _widths(shape: Shape) -> tuple[int, int, int, int]:
    return shape.hidden or 0, shape.attention_width or 0, shape.kv_width or 0, shape.inner or 0


def _activations(config: TrainingConfig, shape: Shape, choice: EngineChoice, tokens: int) -> int:
    """What the layers keep for the backward pass; with recomputation each layer's input and one layer in full."""
    layers, hidden = shape.layers or 0, shape.hidden or 0
    residual = hidden * (2 if config.dtype == "bf16" and choice.sharded else 4)
    layer = _layer(config, shape, choice)
    last = 2 * residual + 2 * hidden
    if choice.recompute:
        return tokens * (layers * residual + layer + last)
    return tokens * (layers * layer + last)


def _layer(config: TrainingConfig, shape: Shape, choice: EngineChoice) -> int:
    """Bytes per token that one layer keeps."""
    h, a, k, f = _widths(shape)
    if config.dtype == "fp32":
        kept = 24 * h + 8 * a + 8 * k + 16 * f
    elif config.lora:
        kept = 18 * h + 6 * a + 4 * k + 8 * f
    elif choice.sharded:
        kept = 16 * h + 4 * a + 4 * k + 8 * f
    else:
        kept = 26 * h + 4 * a + 4 * k + 8 * f
    if config.lora and config.lora_dropout > 0:
        kept += (5 * h + a + f) * (1 if choice.device == "cuda" else 4)
    return kept + 4 * (shape.heads or 0) + 8 + _attention(config, shape, choice)


def _attention(config: TrainingConfig, shape: Shape, choice: EngineChoice) -> int:
    """What attention keeps per token beyond queries, keys, values and its output: nothing for FlashAttention, a mask
    and the keys of every head for sdpa, the whole matrix of every head for eager."""
    _, a, k, _ = _widths(shape)
    width = 4 if config.dtype == "fp32" else 2
    span = config.max_length
    if choice.attention == "flash_attention_2":
        return 0
    if choice.attention == "sdpa":
        return 2 * width * (a - k) + width * span
    return 2 * width * (a - k) + (shape.heads or 0) * span * (4 + 2 * width)


def _logits(config: TrainingConfig, shape: Shape, tokens: int) -> int:
    """Logits and their gradient in the arithmetic's type, and the float32 pieces in which they are read."""
    width = 4 if config.dtype == "fp32" else 2
    whole = tokens * shape.vocabulary
    return 2 * width * whole + min(_READING, 8 * whole)
