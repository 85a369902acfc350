"""Drawing answers from the model in training, for the numbers that need answers of its own.

Temperature 1 over all tokens, because an expectation under a model is estimated from draws of that very model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

from zephyrctl.records import row_seed


def draw_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stops: Collection[int],
    pad: int,
    limit: int,
    seed: int,
    device: Any,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> list[list[int]]:
    """An answer (token ids, its closing token included) of at most `limit` tokens to each prompt, all at once.

    Every row has a generator of its own, seeded from `seed` and its prompt: what shares the batch does not decide what
    is drawn (up to float rounding), and the global random state stays as it is. The model must hold all its weights.
    """
    import torch
    from transformers import DynamicCache

    if not prompts:
        return []
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    generators = [torch.Generator().manual_seed(row_seed(seed, "answer", *p)) for p in prompts]
    cache = DynamicCache(config=model.config)
    answers: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    with torch.no_grad(), autocast():
        for _ in range(limit):
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            drawn = _draw(logits, generators)
            for row in sorted(open_rows):
                answers[row].append(drawn[row])
                if drawn[row] in stops:
                    open_rows.discard(row)
            if not open_rows:
                break
            ids = torch.tensor(drawn, device=device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=-1)
            positions = positions[:, -1:] + 1
    return answers


def _draw(logits: Any, generators: Sequence[Any]) -> list[int]:
    """A token for every row of `logits` `[rows, vocabulary]`, by the Gumbel-max rule with the row's own noise."""
    import torch

    scores = logits.double().cpu()
    noise = torch.stack([torch.rand(scores.shape[1], generator=g, dtype=torch.float64) for g in generators])
    noise = -torch.log(-torch.log(noise.clamp_(min=1e-300)))
    return [int(token) for token in (scores + noise).argmax(dim=-1)]
