"""One forward pass for training, for the reference and for held-out scores: logits only where a token is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zephyrctl.training.logprobs import Reading


@contextmanager
def logits_only_at(model: Any, keep: Any) -> Iterator[None]:
    """Within the block the model's output head sees only the places `keep` `[n]` of its flattened input, so that its
    logits are `[n, vocabulary]`.

    The head's input is narrowed rather than the model called in parts, because every wrapper (DDP, FSDP2, ZeRO, PEFT)
    then does what it always does, and scalings of a model's own behind the head stay in force.
    """

    def narrow(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1])[keep], *args[1:])

    handle = output_head(model).register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()


def output_head(model: Any) -> Any:
    """The module that turns hidden states into logits, found through DDP's, DeepSpeed's and PEFT's wrappers."""
    return innermost(model).get_output_embeddings()


def innermost(model: Any) -> Any:
    """The language model inside the wrappers of DDP and DeepSpeed; PEFT's wrapper speaks for what it holds."""
    while not hasattr(model, "get_output_embeddings"):
        model = model.module
    return model


def read_predicted(model: Any, batch: dict[str, Any]) -> Reading:
    """What `model`, prepared by `read_inside`, says of the n wanted tokens of `batch` (see `batches.tensors`)."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
    with logits_only_at(model, batch["keep"]):
        return Reading(**model(**inputs, use_cache=False, targets=batch["targets"]))


def sums_by_owner(values: Any, owner: Any, count: int) -> Any:
    """`values` `[n]` summed by `owner`: float32 `[count]`."""
    import torch

    return torch.zeros(count, dtype=torch.float32, device=values.device).index_add(0, owner, values.float())
