"""Low-rank adapters (LoRA: arXiv:2106.09685 §4.1; QLoRA: arXiv:2305.14314 §3): put on, taken off, merged, kept.

An adapter starts as a product of which one factor is zero, so that a model that has just been given adapters says
exactly what it said before: in DPO the first pass, or any pass with the adapters switched off, is the reference.
Nothing else of the model trains, so the merged weights are the starting model's own plus `alpha / rank * B @ A`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyrctl.artifacts.hub import PREFIX
from zephyrctl.errors import IntegrityError, MissingExtra, UsageError

if TYPE_CHECKING:
    from zephyrctl.artifacts.models import ModelSource
    from zephyrctl.training.settings import TrainingConfig

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
BASE = "base.json"
_PREFIX = "base_model.model."
_NAME = "default"


@dataclass(frozen=True)
class LoraSettings:
    """What decides an adapter. `targets` are module names or their last parts; none: every linear layer but the output
    head. `nf4`: the frozen weights are held in 4 bits."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    nf4: bool = False

    @classmethod
    def of(cls, config: TrainingConfig) -> LoraSettings | None:
        """The adapter that the settings ask for; None where they train the weights themselves."""
        if not config.lora:
            return None
        return cls(
            config.lora_r,
            config.lora_alpha,
            config.lora_dropout,
            tuple(config.lora_targets),
            config.quantize == "nf4",
        )

    @property
    def scale(self) -> float:
        """What `B @ A` is multiplied with."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Base:
    """The model that an adapter belongs to: a name without any place on this machine, and the digest of its files."""

    name: str
    digest: str

    @classmethod
    def of(cls, source: ModelSource) -> Base:
        """What an adapter says of the model it was trained on: a version's ref, the Hub's name, or a folder's own name
        without the folders above it."""
        cached = next((part for part in source.path.parts if part.startswith("models--")), None)
        if source.artifact is not None:
            name = str(source.artifact.ref)
        elif source.ref.startswith(PREFIX):
            name = source.ref.removeprefix(PREFIX).partition("@")[0]
        elif cached is not None:
            name = cached.removeprefix("models--").replace("--", "/", 1)
        else:
            name = Path(source.ref).name or source.path.resolve().name
        return cls(name, source.digest)


def need_lora_packages(settings: LoraSettings) -> None:
    """Raises MissingExtra where PEFT, or for 4-bit weights bitsandbytes, is not installed."""
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise MissingExtra("peft", "train")
    if settings.nf4 and find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "qlora")


def four_bit(compute: Any) -> Any:
    """How transformers is told to hold linear weights in 4 bits: NormalFloat, the scales quantised too, products in the
    torch dtype `compute` (QLoRA §3)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def keep_layout(model: Any) -> None:
    """Has 4-bit layers compute alike in training and between: on newer CPUs bitsandbytes would turn their weights into
    another layout, with rounded scales, at the first pass without gradients, and stay with it."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def targets_of(model: Any, settings: LoraSettings) -> list[str]:
    """The names by which PEFT finds the layers that get adapters, sorted.

    Raises UsageError for a name that no layer has, for one that is no linear layer, for the output head (its
    log-probabilities are computed past its own forward pass), and for a model without linear layers.
    """
    head = model.get_output_embeddings()
    linear = [
        name.replace(".base_layer", "")
        for name, module in model.named_modules()
        if _is_linear(module) and module is not head and ".lora_" not in name
    ]
    last_parts = sorted({name.rsplit(".", 1)[-1] for name in linear})
    if not last_parts:
        raise UsageError(
            f"{type(model).__name__} has no linear layers that could get adapters",
            hint="without --lora its weights are trained themselves",
        )
    if not settings.targets:
        return last_parts
    for wanted in settings.targets:
        if not any(name == wanted or name.endswith("." + wanted) for name in linear):
            raise UsageError(
                f"lora_targets: '{wanted}' names no linear layer of {type(model).__name__} that can get an adapter",
                hint=f"its linear layers: {', '.join(last_parts)}",
            )
    return sorted(set(settings.targets))


def _is_linear(module: Any) -> bool:
    """Whether a layer multiplies with a weight `[out, in]`. GPT-2's layers hold it the other way round, also under the
    4-bit layers that stand for them."""
    import torch

    return isinstance(module, torch.nn.Linear) and issubclass(
        getattr(module, "source_cls", torch.nn.Linear), torch.nn.Linear
    )


def with_adapters(model: Any, settings: LoraSettings, *, seed: int) -> Any:
    """The model under PEFT with fresh adapters in float32, everything else frozen.

    The adapters are drawn from `seed` alone, so that every process starts with the same ones. Raises UsageError as
    `targets_of`.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    wanted = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type, unused-ignore]
        lora_dropout=settings.dropout,
        target_modules=targets_of(model, settings),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, wanted)


def settle(model: Any) -> None:
    """Undoes what TRL's trainers do to a model that comes with adapters: a second, frozen copy of them as reference
    (DPO; ours is the model with its adapters off), and adapters of 4-bit models rounded to bfloat16."""
    import torch

    if "ref" in model.peft_config:
        model.delete_adapter("ref")
        model.set_adapter(_NAME)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.to(torch.float32)


def is_adapted(model: Any) -> bool:
    """Whether the model is one under PEFT."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def adapter_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter among the weights of an adapted model, named as PEFT stores it, in float32 on the CPU.

    Takes names with or without the adapter's own name in them. Raises IntegrityError where none is there.
    """
    import torch

    found = {
        name.replace(f".{_NAME}.", "."): value.detach().to("cpu", torch.float32)
        for name, value in sorted(state.items())
        if ".lora_A." in name or ".lora_B." in name
    }
    if not found:
        raise IntegrityError("the trained weights hold no adapter")
    return {name if name.startswith(_PREFIX) else _PREFIX + name: value for name, value in found.items()}


def products(adapter: Mapping[str, Any], settings: LoraSettings) -> Iterator[tuple[str, Any]]:
    """For each adapted layer the name of its weight in the plain model, and what is added to it: `scale * B @ A` in
    float32. Raises IntegrityError where a factor is missing."""
    for name in adapter:
        if not name.endswith(".lora_A.weight"):
            continue
        layer = name.removesuffix(".lora_A.weight")
        if layer + ".lora_B.weight" not in adapter:
            raise IntegrityError(f"the adapter of {layer.removeprefix(_PREFIX)} is incomplete: it has no B")
        first, second = adapter[name].float(), adapter[layer + ".lora_B.weight"].float()
        yield layer.removeprefix(_PREFIX) + ".weight", settings.scale * (second @ first)


def merge(weights: dict[str, Any], adapter: Mapping[str, Any], settings: LoraSettings, kind: Any) -> None:
    """Adds the adapter to a plain model's weights in place: each sum in float32, then rounded to the torch dtype
    `kind`. Raises IntegrityError for a layer that the model does not have."""
    for name, change in products(adapter, settings):
        if name not in weights or weights[name].shape != change.shape:
            raise IntegrityError(f"the adapter does not fit the starting model: {name}")
        weights[name] = (weights[name].float() + change).to(kind)


def write_adapter(
    folder: Path, adapter: Mapping[str, Any], settings: LoraSettings, base: Base, targets: list[str]
) -> None:
    """Writes what PEFT and vLLM load on top of the starting model: factors (safetensors, float32), settings, and which
    model they belong to. Equal adapters give equal bytes."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in adapter.items()},
        str(folder / WEIGHTS),
        metadata={"format": "pt"},
    )
    whole = settings.alpha == int(settings.alpha)
    told = LoraConfig(
        r=settings.rank,
        lora_alpha=int(settings.alpha) if whole else settings.alpha,  # type: ignore[arg-type, unused-ignore]
        lora_dropout=settings.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.name,
        inference_mode=True,
    ).to_dict()
    told["target_modules"] = sorted(targets)
    told.pop("runtime_config", None)
    _write_json(folder / SETTINGS, told)
    _write_json(folder / BASE, {"name": base.name, "digest": base.digest})


def _write_json(path: Path, body: Any) -> None:
    path.write_text(
        json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )
