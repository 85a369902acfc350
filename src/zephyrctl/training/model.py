"""Models in and out: loaded in float32 with dropout off, saved as a plain Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zephyrctl.errors import EnvironmentFault, MissingExtra, StageRejected
from zephyrctl.libraries import fit_threads

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


def load_model(folder: Path) -> Any:
    """The causal language model of a local folder, in float32 on the CPU, dropout off.

    Raises EnvironmentFault where its files do not make a model.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        for name in _DROPOUTS:
            if isinstance(getattr(config, name, None), float):
                setattr(config, name, 0.0)
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EnvironmentFault(f"{folder}: cannot be loaded as a language model: {lines[0][:300]}") from None
    fit_threads(model.num_parameters())
    return model


def save_model(model: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """Writes weights (safetensors, in `dtype` bf16 or fp32), config, generation settings, tokenizer and chat
    template.

    The generation settings name every token that ends an answer. Nothing else is written: no optimiser, no
    pickles.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    plain = _fresh_copy(model, kind)
    plain.config.use_cache = True
    plain.generation_config.eos_token_id = stop_ids(model, tokenizer)
    plain.generation_config.pad_token_id = tokenizer.pad_token_id
    plain.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    _forget_origin(folder)


def stop_ids(model: Any, tokenizer: Any) -> int | list[int]:
    """The token ids that end an answer: the tokenizer's and those the model already had; one id or a sorted
    list."""
    known = getattr(model.generation_config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])} - {None}
    return next(iter(ids)) if len(ids) == 1 else sorted(ids)


def _fresh_copy(model: Any, kind: Any) -> Any:
    """The same weights in another dtype, in a model object that no trainer has touched."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    config.dtype = kind
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=kind)
    state = {name: value.detach().to("cpu", kind) for name, value in model.state_dict().items()}
    plain.load_state_dict(state, strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


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
    by less than any learning rate in use would move it does not count.
    """
    import torch

    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    start, end = _weights(init), _weights(saved)
    changed = sum(
        name not in start or _distance(start[name].to(kind), value.to(kind)) > _SMALLEST_CHANGE
        for name, value in end.items()
    )
    if changed == 0:
        raise StageRejected(
            f"training changed no weight (as saved in {dtype}); nothing was committed",
            hint="a larger --lr, more --epochs, or --set dtype=fp32",
        )
    return changed


def _distance(left: Any, right: Any) -> float:
    return float((left.float() - right.float()).abs().max())


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(str(path)))
    return found
