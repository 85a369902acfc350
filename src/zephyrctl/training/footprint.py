"""What a model folder holds: its shape from `config.json`, and whether its weights are there. No torch needed.

Sizes come from `config.json` alone, so that a 7B-shaped folder is refused in a moment and not after minutes
of loading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyrctl.errors import EnvironmentFault, IntegrityError

_GIB = 1024**3
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class Shape:
    """What `config.json` says of a model. `parameters` None where the architecture is not one we can count; sizes None
    where it does not give them."""

    architecture: str
    parameters: int | None
    context: int | None
    vocabulary: int
    hidden: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_width: int | None = None
    inner: int | None = None
    """Channels of the gated MLP."""
    window: int | None = None
    """Positions that a token can look back at, where attention slides."""
    tied: bool = False
    """Whether the output head is the table of input embeddings."""

    @property
    def size(self) -> str:
        """`7.2 B`, `1.7 M`; `unknown size` where it cannot be counted."""
        if self.parameters is None:
            return "unknown size"
        if self.parameters >= 10**9:
            return f"{self.parameters / 10**9:.1f} B"
        return f"{self.parameters / 10**6:.1f} M"

    @property
    def attention_width(self) -> int | None:
        """Channels of all query heads together."""
        return None if self.heads is None or self.head_width is None else self.heads * self.head_width

    @property
    def kv_width(self) -> int | None:
        """Channels of all key heads together."""
        return None if self.kv_heads is None or self.head_width is None else self.kv_heads * self.head_width

    @property
    def embedding(self) -> int:
        """Parameters of the table of input embeddings."""
        return self.vocabulary * (self.hidden or 0)

    @property
    def linear(self) -> int | None:
        """Parameters of the linear layers of all blocks, the output head left out: those that adapters join and that
        4 bits can hold."""
        width, keys = self.attention_width, self.kv_width
        if width is None or keys is None or self.hidden is None or self.inner is None or self.layers is None:
            return None
        return self.layers * (self.hidden * (2 * width + 2 * keys) + 3 * self.hidden * self.inner)

    @property
    def multiplied(self) -> int | None:
        """Parameters that every token is multiplied with: the linear layers and the output head."""
        return None if self.linear is None else self.linear + self.embedding


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
    return shape_of(config)


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape that the content of a `config.json` describes; of a model that also sees, its text part."""
    architecture = (config.get("architectures") or [config.get("model_type") or "unknown"])[0]
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, dict) else config
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    width = _size(config, "head_dim") or (hidden // heads if hidden and heads else None)
    slides = config.get("use_sliding_window", True)
    return Shape(
        str(architecture),
        count_parameters(config),
        config.get("max_position_embeddings"),
        _size(config, "vocab_size") or 0,
        hidden=hidden,
        layers=_size(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads") or heads,
        head_width=width,
        inner=_size(config, "intermediate_size"),
        window=_size(config, "sliding_window") if slides else None,
        tied=_tied(config),
    )


def _size(config: dict[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if isinstance(value, int) and value > 0 else None


def _tied(config: dict[str, Any]) -> bool:
    """Gemma's configs leave the word out and mean yes; all others that leave it out mean no."""
    return bool(config.get("tie_word_embeddings", str(config.get("model_type")).startswith("gemma")))


def count_parameters(config: dict[str, Any]) -> int | None:
    """Parameters of a Llama-like decoder (grouped-query attention, gated MLP, RMS norms), None where a size
    is missing or where there are several experts."""
    try:
        hidden, layers, vocabulary = (
            int(config[k]) for k in ("hidden_size", "num_hidden_layers", "vocab_size")
        )
        heads, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
    except (KeyError, TypeError, ValueError):
        return None
    if any(int(config.get(k) or 0) > 1 for k in ("num_local_experts", "num_experts", "n_routed_experts")):
        return None
    key_value = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or hidden // heads)
    attention = hidden * width * (2 * heads + 2 * key_value)
    per_layer = attention + 3 * hidden * inner + _small(config, hidden, width, heads, key_value)
    embeddings = vocabulary * hidden * (1 if _tied(config) else 2)
    return layers * per_layer + embeddings + hidden


def _small(config: dict[str, Any], hidden: int, width: int, heads: int, key_value: int) -> int:
    """Parameters of a layer's norms and biases, by family."""
    family = str(config.get("model_type"))
    norms = 4 if family.startswith(("gemma2", "gemma3")) else 2
    own = norms * hidden
    if family.startswith("qwen2"):
        own += width * (heads + 2 * key_value)
    if family.startswith(("qwen3", "gemma3")):
        own += 2 * width
    if family.startswith(("olmo2", "olmo3")):
        own += width * (heads + key_value)
    return own


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
    memory = shape.parameters and 16 * shape.parameters
    raise EnvironmentFault(
        f"{folder}: {needs}; its weights are missing: needs model.safetensors, or"
        " model.safetensors.index.json with the files it names"
        + (f" (and full training needs about {memory / _GIB:.0f} GiB of memory)" if memory else ""),
        hint="copy the weights into the folder, or train the tiny model: --init sandbox",
    )
