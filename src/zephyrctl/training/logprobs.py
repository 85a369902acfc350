"""Log-probabilities of tokens from logits, in pieces.

Logits are the largest tensor of a step (tokens x vocabulary). Here they are read in pieces, so that never a float32
copy of all of them exists, neither forward nor backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, wraps
from types import MethodType
from typing import Any

PIECE_BYTES = {"cpu": 8 << 20, "cuda": 128 << 20}
"""The size of a float32 piece of logits, by device: on a CPU what its cache can hold (half the time of large pieces
with a vocabulary of 32,000), on a GPU enough to be worth a launch. Rows are independent: it never changes a value."""


_LOWEST = -1e30


@dataclass(frozen=True)
class Reading:
    """What logits `[n, vocabulary]` say of the tokens that came, all float32 `[n]` but `top`."""

    logprobs: Any
    """Log-probability of each token, in nats; differentiable."""
    entropy: Any
    """Entropy of each distribution, in nats; without gradient."""
    top: Any
    """Whether the token was the most likely one, bool; without gradient."""


def picked_logprobs(logits: Any, ids: Any) -> Any:
    """log softmax(logits)[ids]: logits `[n, vocabulary]` of any float type, ids `[n]`; float32 `[n]`,
    differentiable (once)."""
    return _reader().apply(logits, ids, False)[0]


def read_logits(logits: Any, ids: Any) -> Reading:
    """`picked_logprobs`, with the numbers for metrics from the same pass."""
    return Reading(*_reader().apply(logits, ids, True))


def read_inside(model: Any) -> None:
    """Lets `model(..., targets=ids)` give what `read_logits` reads from its logits, as a dict of the fields of
    `Reading`, in place of the logits; `ids` has one id for each row of the logits, however they are shaped.

    To be called before anything wraps the model. accelerate turns what a model returns under bf16 autocast into
    float32, all logits too; what is read inside is small by then. A dict of tensors is what DDP, FSDP2 and DeepSpeed
    can follow back to the loss.
    """
    forward = model.forward

    @wraps(forward)
    def reading(self: Any, *args: Any, targets: Any = None, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        if targets is None:
            return out
        found = read_logits(out.logits.reshape(-1, out.logits.shape[-1]), targets)
        return {"logprobs": found.logprobs, "entropy": found.entropy, "top": found.top}

    model.forward = MethodType(reading, model)


@cache
def _reader() -> Any:
    """The autograd function; made once, as torch is imported late."""
    import torch
    from torch.autograd.function import once_differentiable

    class ReadLogits(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Any, ids: Any, metrics: bool) -> tuple[Any, Any, Any]:
            n = logits.shape[0]
            logprobs = torch.empty(n, dtype=torch.float32, device=logits.device)
            entropy = torch.empty(n if metrics else 0, dtype=torch.float32, device=logits.device)
            top = torch.empty(n if metrics else 0, dtype=torch.bool, device=logits.device)
            for rows in pieces(logits):
                piece = torch.log_softmax(logits[rows], dim=-1, dtype=torch.float32)
                logprobs[rows] = piece.gather(1, ids[rows, None]).squeeze(1)
                if metrics:
                    top[rows] = piece.argmax(dim=-1) == ids[rows]
                    # a token that a model rules out has the logit -inf, and 0 * -inf is not a number
                    entropy[rows] = -piece.exp().mul_(piece.clamp_(min=_LOWEST)).sum(dim=-1)
            ctx.save_for_backward(logits, ids)
            ctx.mark_non_differentiable(entropy, top)
            return logprobs, entropy, top

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *grads: Any) -> tuple[Any, None, None]:
            logits, ids = ctx.saved_tensors
            wanted = grads[0].float()
            found = torch.empty_like(logits)
            for rows in pieces(logits):
                piece = torch.softmax(logits[rows], dim=-1, dtype=torch.float32).mul_(-wanted[rows, None])
                found[rows] = piece.scatter_add_(1, ids[rows, None], wanted[rows, None])
            return found, None, None

    return ReadLogits


def pieces(logits: Any) -> list[slice]:
    """The rows of logits `[n, vocabulary]` in pieces of at most `PIECE_BYTES` as float32, at least one row each."""
    n, vocabulary = logits.shape
    size = max(1, PIECE_BYTES.get(logits.device.type, PIECE_BYTES["cuda"]) // (4 * vocabulary))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
