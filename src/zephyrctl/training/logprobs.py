"""Log-probabilities of answers under a model, without gradients: the reference's, and held-out scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from zephyrctl.training.tokens import PairTokens, SftTokens

Autocast = Callable[[], AbstractContextManager[Any]]


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers in batches of `size`, rows of like length together; the order depends on the lengths
    alone."""
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    return [order[i : i + size] for i in range(0, len(order), size)]


def token_logprobs(model: Any, rows: Sequence[Sequence[int]], pad: int, autocast: Autocast) -> Any:
    """Log-probability of every token given those before it, float32 `[len(rows), longest - 1]`; padded on
    the right."""
    import torch

    width = max(len(row) for row in rows)
    device = model.device
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    with torch.no_grad(), autocast():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def answer_logprobs(
    model: Any, pairs: Sequence[PairTokens], *, pad: int, size: int, autocast: Autocast
) -> tuple[list[float], list[float]]:
    """Summed log-probability of each pair's chosen and rejected answer given its prompt, in nats."""
    chosen, rejected = [0.0] * len(pairs), [0.0] * len(pairs)
    for batch in batches([pair.length for pair in pairs], size):
        rows = [pairs[i].prompt_ids + pairs[i].chosen_ids for i in batch]
        rows += [pairs[i].prompt_ids + pairs[i].rejected_ids for i in batch]
        found = token_logprobs(model, rows, pad, autocast)
        for place, row in enumerate(rows):
            pair = batch[place % len(batch)]
            start = len(pairs[pair].prompt_ids) - 1
            total = float(found[place, start : len(row) - 1].sum())
            (chosen if place < len(batch) else rejected)[pair] = total
    return chosen, rejected


def dialogue_loss(model: Any, rows: Sequence[SftTokens], *, pad: int, size: int, autocast: Autocast) -> float:
    """Mean negative log-probability over every loss-bearing token of `rows`, in nats."""
    import torch

    total, count = 0.0, 0
    for batch in batches([row.length for row in rows], size):
        found = token_logprobs(model, [rows[i].input_ids for i in batch], pad, autocast)
        for place, i in enumerate(batch):
            bears = torch.tensor([label != -100 for label in rows[i].labels[1:]], device=found.device)
            total -= float(found[place, : len(bears)][bears].sum())
            count += int(bears.sum())
    return total / max(1, count)


def preference_scores(
    policy: tuple[Sequence[float], Sequence[float]],
    reference: tuple[Sequence[float], Sequence[float]],
    beta: float,
) -> dict[str, float]:
    """DPO loss, accuracy and mean reward margin from summed log-probabilities (chosen, rejected) of policy
    and reference.

    Loss: -log sigmoid(beta * margin), Rafailov et al. 2023, equation 7. Pairs of equal reward count as wrong.
    """
    import math

    margins = [beta * ((pc - rc) - (pr - rr)) for pc, pr, rc, rr in zip(*policy, *reference, strict=True)]
    losses = [math.log1p(math.exp(-m)) if m > -30 else -m for m in margins]
    n = max(1, len(margins))
    return {
        "loss": sum(losses) / n,
        "accuracy": sum(m > 0 for m in margins) / n,
        "margin": sum(margins) / n,
    }
