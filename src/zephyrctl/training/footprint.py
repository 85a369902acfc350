"""Whether a model folder can be trained here: its weights are there and the memory is enough. No torch
needed.

Sizes come from `config.json` alone, so that a 7B-shaped folder is refused in a moment and not after minutes
of loading.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyrctl.errors import EnvironmentFault, IntegrityError

_GIB = 1024**3
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_RUNTIME_BYTES = _GIB // 2
"""What Python, torch and the tokenized rows take before a model is loaded."""


@dataclass(frozen=True)
class Shape:
    """What `config.json` says of a model. `parameters` None where the architecture is not one we can
    count."""

    architecture: str
    parameters: int | None
    context: int | None
    vocabulary: int

    @property
    def size(self) -> str:
        """`7.2 B`, `1.7 M`; `unknown size` where it cannot be counted."""
        if self.parameters is None:
            return "unknown size"
        if self.parameters >= 10**9:
            return f"{self.parameters / 10**9:.1f} B"
        return f"{self.parameters / 10**6:.1f} M"


def read_shape(folder: Path) -> Shape:
    """The shape of the model in `folder`. Raises EnvironmentFault where `config.json` is missing or not a
    language model's, IntegrityError where it is not JSON."""
    path = folder / "config.json"
    if not path.is_file():
        raise EnvironmentFault(
            f"{folder} is not a model folder: it has no config.json",
            hint="--init wants a folder with config.json, model.safetensors and tokenizer.json",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise IntegrityError(f"{path}: expected a JSON object")
    architecture = (config.get("architectures") or [config.get("model_type") or "unknown"])[0]
    return Shape(
        str(architecture),
        count_parameters(config),
        config.get("max_position_embeddings"),
        _vocabulary(config),
    )


def _vocabulary(config: dict[str, Any]) -> int:
    value = config.get("vocab_size")
    return value if isinstance(value, int) else 0


def count_parameters(config: dict[str, Any]) -> int | None:
    """Parameters of a Llama-like decoder (grouped-query attention, gated MLP, RMS norms), None where a size
    is missing."""
    try:
        hidden, layers, vocabulary = (
            int(config[k]) for k in ("hidden_size", "num_hidden_layers", "vocab_size")
        )
        heads, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
    except (KeyError, TypeError, ValueError):
        return None
    key_value = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or hidden // heads)
    attention = hidden * width * (2 * heads + 2 * key_value)
    per_layer = attention + 3 * hidden * inner + 2 * hidden
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return layers * per_layer + embeddings + hidden


def check_weights(folder: Path, shape: Shape) -> None:
    """Raises EnvironmentFault where the weights are missing, incomplete, or only in a format that can run
    code."""
    needs = f"config.json describes a {shape.size}-parameter model ({shape.architecture})"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
            raise IntegrityError(f"{index}: not a valid index of weight files") from None
        missing = [name for name in shards if not (folder / str(name)).is_file()]
        if missing:
            raise EnvironmentFault(
                f"{folder}: {needs}; {len(missing)} of its {len(shards)} weight files are missing:"
                f" {', '.join(missing[:3])}" + (" …" if len(missing) > 3 else ""),
                hint="copy the missing files into the folder",
            )
        return
    if (folder / "model.safetensors").is_file():
        return
    pickled = sorted(p.name for pattern in _PICKLED for p in folder.glob(pattern))
    if pickled:
        raise EnvironmentFault(
            f"{folder}: {needs}; its weights are only in {pickled[0]}, a format that can run code when"
            " opened",
            hint="convert them to model.safetensors first",
        )
    memory = training_bytes(shape, reference=False)
    raise EnvironmentFault(
        f"{folder}: {needs}; its weights are missing: needs model.safetensors, or"
        " model.safetensors.index.json with the files it names"
        + (f" (and full training needs about {memory / _GIB:.0f} GiB of memory)" if memory else ""),
        hint="copy the weights into the folder, or train the tiny model: --init sandbox",
    )


def training_bytes(shape: Shape, *, reference: bool) -> int | None:
    """Bytes that full training takes at the least: float32 weights, gradients and two Adam states, and the
    reference model's weights where there is one. Activations come on top."""
    if shape.parameters is None:
        return None
    return shape.parameters * (4 + 4 + 8 + (4 if reference else 0)) + _RUNTIME_BYTES


def available_bytes() -> int | None:
    """Memory that a new process can have on this machine, within its container's limit; None where it cannot
    be told."""
    found: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((group / "memory.current").read_text(encoding="ascii"))
            found.append(max(0, int(limit) - used))
    except (OSError, ValueError):
        pass
    if not found:
        try:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (OSError, ValueError):
            return None
    return min(found)


def gpu_bytes() -> int | None:
    """Memory of the first CUDA device, without opening one where there is no driver; None where there is
    none."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return None
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def check_memory(folder: Path, shape: Shape, *, reference: bool) -> None:
    """Raises EnvironmentFault where training the model needs more memory than this machine has."""
    needed = training_bytes(shape, reference=reference)
    on_gpu = gpu_bytes()
    have = on_gpu if on_gpu is not None else available_bytes()
    if needed is None or have is None or needed <= have:
        return
    place = "its GPU has" if on_gpu is not None else "this machine has"
    kept = "weights, gradients, Adam states" + (", reference model" if reference else "")
    raise EnvironmentFault(
        f"{folder}: training this {shape.size}-parameter model needs about {needed / _GIB:.0f} GiB ({kept}),"
        f" {place} {have / _GIB:.0f} GiB",
        hint="use a machine with more memory, or a smaller model: --init sandbox",
    )


def check_trainable(folder: Path, *, reference: bool) -> Shape:
    """The shape of the model in `folder`, which can be trained here. Raises as the checks above."""
    shape = read_shape(folder)
    check_weights(folder, shape)
    check_memory(folder, shape, reference=reference)
    return shape
