"""Token rows as tensors. No attention mask is made: causal attention never looks at what follows, so padding on the
right needs none, and rows that share a sequence are told apart by positions that begin anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from zephyrctl.training.packing import PackedRows
from zephyrctl.training.token_rows import PairTokens, SftRows


@dataclass(frozen=True)
class Sequence_:
    """One sequence to run: its ids, the lengths of the documents in it, and the places whose token bears loss."""

    ids: Sequence[int]
    documents: Sequence[int]
    predicted: Sequence[int]
    """Places (0-based, never the first of a document) of the tokens whose log-probability is wanted."""


def dialogue_sequences(rows: Sequence[Any]) -> list[Sequence_]:
    """A sequence for each SFT row or pack: loss wherever `labels` are not -100, but on the first token of a document,
    which nothing before it predicts."""
    found = []
    for row in rows:
        documents = list(getattr(row, "seq_lengths", None) or [len(row.input_ids)])
        first, start = set(), 0
        for length in documents:
            first.add(start)
            start += length
        wanted = [place for place, label in enumerate(row.labels) if label != -100 and place not in first]
        found.append(Sequence_(row.input_ids, documents, wanted))
    return found


def pair_sequences(pairs: Sequence[PairTokens]) -> list[Sequence_]:
    """Prompt and chosen answer of every pair, then prompt and rejected answer of every pair."""
    found = []
    for side in ("chosen_ids", "rejected_ids"):
        for pair in pairs:
            answer = getattr(pair, side)
            ids = [*pair.prompt_ids, *answer]
            start = len(pair.prompt_ids)
            found.append(Sequence_(ids, [len(ids)], range(max(start, 1), len(ids))))
    return found


def loss_token_counts(rows: Any) -> list[int]:
    """How many tokens of every SFT row or pack bear loss; the first token of each document never does."""
    import numpy as np

    packs = rows.plan.packs if isinstance(rows, PackedRows) else None
    inner = rows.rows if packs is not None else rows
    if not isinstance(inner, SftRows):
        return [len(s.predicted) for s in dialogue_sequences(rows)]
    column = inner.columns["bears_loss"]
    bears = np.asarray(column.values, dtype=bool)
    before = np.concatenate([[0], np.cumsum(bears, dtype=np.int64)])
    ends = np.asarray(column.ends, dtype=np.int64)

    def within(start: int, stop: int) -> int:
        return int(before[stop] - before[start + 1]) if stop > start else 0

    if packs is None:
        return [within(int(a), int(b)) for a, b in pairwise(ends)]
    return [sum(within(int(ends[r]) + a, int(ends[r]) + b) for r, a, b in pack) for pack in packs]


def tensors(sequences: Sequence[Sequence_], *, pad: int, flat: bool) -> dict[str, Any]:
    """What a model is given, and where its outputs are wanted.

    `input_ids` `[rows, width]` (with `flat`: `[1, all tokens]`), `position_ids` of the same shape where a row holds
    several documents, `keep` `[n]` places in the flattened output that predict, `targets` `[n]` the ids predicted,
    `owner` `[n]` the sequence each belongs to.
    """
    import numpy as np
    import torch

    lengths = [len(s.ids) for s in sequences]
    width = sum(lengths) if flat else max(lengths)
    ids = np.full((1 if flat else len(sequences), width), pad, dtype=np.int64)
    positions = np.zeros_like(ids)
    keep, targets, owner = [], [], []
    start = 0
    for number, sequence in enumerate(sequences):
        row, begin = (0, start) if flat else (number, 0)
        own = np.asarray(sequence.ids, dtype=np.int64)
        ids[row, begin : begin + len(own)] = own
        positions[row, begin : begin + len(own)] = np.concatenate([np.arange(n) for n in sequence.documents])
        positions[row, begin + len(own) :] = np.arange(width - begin - len(own))
        places = np.asarray(sequence.predicted, dtype=np.int64)
        keep.append(row * width + begin + places - 1)
        targets.append(own[places])
        owner.append(np.full(len(places), number, dtype=np.int64))
        start += len(own)
    batch = {
        "input_ids": torch.from_numpy(ids),
        "keep": torch.from_numpy(np.concatenate(keep)),
        "targets": torch.from_numpy(np.concatenate(targets)),
        "owner": torch.from_numpy(np.concatenate(owner)),
    }
    if flat or any(len(s.documents) > 1 for s in sequences):
        batch["position_ids"] = torch.from_numpy(positions)
    return batch
