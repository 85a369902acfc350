"""A model's weights brought together on the leading process, whichever engine holds them in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def gathered(model: Any, *, leads: bool = True, trainable: bool = False) -> dict[str, Any]:
    """The model's weights by name on the CPU, in the dtype they are held in; empty where this process does not lead.

    Every process must call it: ZeRO-3 and FSDP2 bring each weight together by a message to all. One weight is whole at
    a time, so that a GPU need not hold more than its part and the largest weight. `trainable` leaves out what is
    frozen: of a model with adapters only the adapters move. Buffers that are saved with the model come along otherwise.
    """
    found: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        if trainable and not parameter.requires_grad:
            continue
        whole = _whole(parameter, leads)
        if whole is not None:
            found[_plain(name)] = whole
    if leads and not trainable:
        found.update(_saved_buffers(model))
    return found


def _whole(parameter: Any, leads: bool) -> Any:
    """One weight as a CPU tensor on the leading process, None on others. Weights that no engine splits and that are on
    the CPU already are not copied."""
    if hasattr(parameter, "ds_id"):
        from deepspeed import zero

        with zero.GatheredParameters([parameter]):
            return parameter.detach().cpu() if leads else None
    if hasattr(parameter, "full_tensor"):
        whole = parameter.detach().full_tensor()
        return whole.cpu() if leads else None
    return parameter.detach().cpu() if leads else None


def _saved_buffers(model: Any) -> dict[str, Any]:
    """What a model saves besides its parameters; no engine splits it."""
    return {
        _plain(f"{place}.{name}" if place else name): value.detach().cpu()
        for place, module in model.named_modules()
        for name, value in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def is_sharding() -> bool:
    """Whether transformers was told that an engine will hold a part of the weights per process (ZeRO-3, FSDP)."""
    from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

    return bool(is_deepspeed_zero3_enabled() or is_fsdp_enabled())


@contextmanager
def whole_models() -> Iterator[None]:
    """Within the block transformers makes and loads models whole in this process alone, also under ZeRO-3."""
    from transformers.integrations import deepspeed

    known = deepspeed._hf_deepspeed_config_weak_ref
    kept = None if known is None else known()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if kept is not None:
            deepspeed.set_hf_deepspeed_config(kept)
