"""Models in and out: loaded as they are trained, saved as a plain Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyrctl.artifacts.models import ADAPTER
from zephyrctl.chat.tokenizer import stop_ids
from zephyrctl.errors import EnvironmentFault, MissingExtra, StageRejected, UsageError
from zephyrctl.libraries import fit_threads
from zephyrctl.training import lora as adapters
from zephyrctl.training.gather import gathered, is_sharding, whole_models
from zephyrctl.training.lora import Base, LoraSettings

if TYPE_CHECKING:
    from zephyrctl.training.settings import TrainingConfig

SHARD = "5GB"
"""The largest weights file: what the Hub's own models come in."""
_SMALLEST_CHANGE = 1e-12
_DROPOUTS = (
    "attention_dropout",
    "attn_pdrop",
    "dropout",
    "embd_pdrop",
    "hidden_dropout",
    "resid_dropout",
    "resid_pdrop",
)


def need_training_packages() -> None:
    """Raises MissingExtra where torch, transformers, TRL, datasets or accelerate is not installed."""
    from importlib.util import find_spec

    for package in ("torch", "transformers", "trl", "datasets", "accelerate"):
        if find_spec(package) is None:
            raise MissingExtra(package, "train")


def load_model(
    folder: Path,
    *,
    config: TrainingConfig | None = None,
    attention: str = "sdpa",
    device: str | None = None,
) -> Any:
    """The causal language model of a local folder as it is trained: float32 weights, its own dropout off.

    Without `config` the plain model. With `config.lora` the model is wrapped by PEFT with fresh adapters in float32
    and the rest frozen; frozen matrices are then held in bfloat16 where `config.dtype` is bf16 (its autocast rounds
    them for every product anyway, so that nothing changes in the numbers) or in 4 bits where `config.quantize` says
    so. Where transformers was told of ZeRO-3 before, the weights are spread over the processes while they are read.
    `attention` is transformers' name of the implementation. `device` None leaves the model on the CPU, from where a
    trainer moves it; 4-bit weights, which have to be made where they are used, go to this process's GPU where there
    is one.

    Raises EnvironmentFault where the files do not make a model, MissingExtra for LoRA's packages, UsageError for
    adapters that cannot be put on it.
    """
    settings = None if config is None else LoraSettings.of(config)
    if config is None or settings is None:
        model = _placed(_read(folder, attention=attention), device)
        fit_threads(model.num_parameters())
        return model
    adapters.need_lora_packages(settings)
    model = _frozen(folder, config, settings, attention, device)
    fit_threads(model.num_parameters())
    return adapters.with_adapters(model, settings, seed=config.seed)


def _frozen(
    folder: Path, config: TrainingConfig, settings: LoraSettings, attention: str, device: str | None
) -> Any:
    """The model that adapters are put on: its matrices in as few bits as training leaves them anyway."""
    import torch

    compute = torch.bfloat16 if config.dtype == "bf16" else torch.float32
    if is_sharding():
        if settings.nf4:
            raise UsageError(
                "weights held in 4 bits are not spread over processes: quantize=nf4 goes with one process or"
                " --engine ddp",
                hint="--engine ddp, or --set quantize=none with zero3 or fsdp2",
            )
        return _read(folder, attention=attention)
    if settings.nf4:
        place = device or (f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu")
        extra = {"quantization_config": adapters.four_bit(compute), "device_map": {"": place}}
        model = _read(folder, attention=attention, **extra)
        adapters.keep_layout(model)
        return _narrowed(model, compute)
    return _placed(_narrowed(_read(folder, attention=attention, dtype=_stored_in(folder)), compute), device)


def _narrowed(model: Any, kind: Any) -> Any:
    """`model`, the weights of its linear layers in the torch dtype `kind` and all others in float32: norms and
    embeddings, which autocast computes in float32, and a matrix that is shared with the embeddings."""
    import torch

    shared = id(model.get_input_embeddings().weight)
    for module in model.modules():
        plain = type(module) is torch.nn.Linear and id(module.weight) != shared
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(kind if plain else torch.float32)
    return model


def _placed(model: Any, device: str | None) -> Any:
    return model if device is None or is_sharding() else model.to(device)


def _stored_in(folder: Path) -> Any:
    """The torch dtype in which all of a folder's weights can be read without loss: bfloat16 or float32."""
    import torch
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            names = file.keys()
            if any(file.get_slice(name).get_dtype() != "BF16" for name in names):
                return torch.float32
    return torch.bfloat16


def _read(folder: Path, *, attention: str = "sdpa", dtype: Any = None, **extra: Any) -> Any:
    """The model in a torch dtype (None: float32), dropout off. Raises EnvironmentFault."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        for name in _DROPOUTS:
            if isinstance(getattr(config, name, None), float):
                setattr(config, name, 0.0)
        return AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=config,
            dtype=dtype or torch.float32,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            **extra,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EnvironmentFault(f"{folder}: cannot be loaded as a language model: {lines[0][:300]}") from None


def save_model(
    model: Any,
    tokenizer: Any,
    folder: Path,
    dtype: str,
    *,
    init: Path | None = None,
    state: Mapping[str, Any] | None = None,
    lora: LoraSettings | None = None,
    base: Base | None = None,
) -> None:
    """Writes weights (safetensors, in `dtype` bf16 or fp32), config, generation settings, tokenizer and chat
    template.

    `state` holds the weights by name where `model` itself does not (`gather.gathered`); only the leading process
    calls this then. With `lora` the weights are those of the folder `init` plus the adapter, summed in float32 - for
    4-bit training too, so that the unquantised model is what changes -, and the adapter itself goes into the folder
    `adapter` beside them, where it names `base`.

    The generation settings name every token that ends an answer. Nothing else is written: no optimiser, no pickles.
    Equal weights give equal bytes. Raises IntegrityError where an adapter does not fit.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    plain = model.get_base_model() if adapters.is_adapted(model) else model
    weights = state if state is not None else gathered(model)
    if lora is not None:
        if init is None or base is None:
            raise ValueError("an adapter is merged into the weights of `init`, and names its `base`")
        adapter = adapters.adapter_state(weights)
        targets = sorted(model.peft_config["default"].target_modules)
        weights = _merged(init, adapter, lora, kind)
        adapters.write_adapter(folder / ADAPTER, adapter, lora, base, targets)
    fresh = _fresh(plain, weights, kind)
    fresh.config.use_cache = True
    fresh.generation_config.eos_token_id = _stops(plain, tokenizer)
    fresh.generation_config.pad_token_id = tokenizer.pad_token_id
    fresh.save_pretrained(str(folder), max_shard_size=SHARD)
    tokenizer.save_pretrained(str(folder))
    _forget_origin(folder)


def _merged(init: Path, adapter: Mapping[str, Any], settings: LoraSettings, kind: Any) -> dict[str, Any]:
    """The starting model's weights in the torch dtype `kind`, the adapter added."""
    with whole_models():
        # Held by this dictionary alone, so that each weight leaves memory when its successor takes its place.
        weights = dict(_read(init, dtype=_stored_in(init)).state_dict())
    adapters.merge(weights, adapter, settings, kind)
    return weights


def _stops(model: Any, tokenizer: Any) -> int | list[int]:
    """The token ids that end an answer as generation settings hold them: one id or several."""
    ids = stop_ids(tokenizer, model.generation_config.eos_token_id)
    return ids[0] if len(ids) == 1 else ids


def _fresh(model: Any, weights: Mapping[str, Any], kind: Any) -> Any:
    """The weights in another dtype, in a model object like `model` that no trainer, engine or quantiser has touched."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    config.dtype = kind
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    with whole_models(), torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(config, dtype=kind)
    state = {name: value.detach().to("cpu", kind) for name, value in weights.items()}
    tied = set(fresh.all_tied_weights_keys)
    for name in fresh.state_dict().keys() - state.keys():
        if name in tied:
            state[name] = state[fresh.all_tied_weights_keys[name]]
    fresh.load_state_dict(state, strict=True, assign=True)
    fresh.tie_weights()
    fresh.generation_config = copy.deepcopy(model.generation_config)
    return fresh


def _forget_origin(folder: Path) -> None:
    """Takes places on this machine out of the saved JSON files, so that equal work gives equal bytes
    anywhere."""
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        body = json.loads(path.read_text(encoding="utf-8"))
        for key in (
            "_name_or_path",
            "name_or_path",
            "model_tags",
            "local_files_only",
            "trust_remote_code",
            "is_local",
        ):
            body.pop(key, None)
        path.write_text(
            json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def require_change(init: Path, saved: Path, dtype: str) -> int:
    """How many weight tensors of `saved` differ from `init`, compared in the dtype that is saved.

    Raises StageRejected where none does: such a run trained nothing that can be kept. A weight that left 0
    by less than any learning rate in use would move it does not count. One weight of each is in memory at a time.
    """
    import torch

    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    start, end = _places(init), _places(saved)
    changed = sum(
        name not in start
        or _distance(_weight(start[name], name).to(kind), _weight(path, name).to(kind)) > _SMALLEST_CHANGE
        for name, path in end.items()
    )
    if changed == 0:
        raise StageRejected(
            f"training changed no weight (as saved in {dtype}); nothing was committed",
            hint="a larger --lr, more --epochs, or --set dtype=fp32",
        )
    return changed


def _distance(left: Any, right: Any) -> float:
    return float((left.float() - right.float()).abs().max())


def _places(folder: Path) -> dict[str, Path]:
    """Which file of a model folder holds which weight."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found


def _weight(path: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return file.get_tensor(name)
