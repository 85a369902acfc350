"""How much work a data set is, from the lengths of its rows alone: tokens, cuts, packs, padding, steps.

The lengths come from rows that were tokenised, or from a `.npy` file, so that a run can be planned where neither data
nor model are: one number for each dialogue, or three (prompt, chosen, rejected) for each pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zephyrctl.errors import IntegrityError, MissingExtra, RefNotFound, StageRejected, UsageError
from zephyrctl.training.flops import mean_context
from zephyrctl.training.packing import How, PackedRows, PackPlan, make_packs
from zephyrctl.training.passes import even
from zephyrctl.training.plan import Plan, longest_row, make_plan
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.token_rows import PairRows, SftRows

_LONGEST = 10**8
"""Tokens that a row may have before its length is taken for something else."""


@dataclass(frozen=True)
class Workload:
    """One epoch of training rows after cuts. Of pairs, both sequences count with their prompt."""

    rows: int
    tokens: int
    lengths: tuple[int, ...]
    """Tokens of every row as it is trained on."""
    sizes: tuple[int, ...]
    """Tokens of every sequence that a batch counts: a row, or a pack of rows. Of a pair: its longer sequence."""
    context: float
    """Positions that a token attends to on average."""
    cut: int = 0
    cut_tokens: int = 0
    packing: str = "none"
    sides: int = 1
    """Sequences that a row runs through the model: of a pair two, of like width once padded."""

    @property
    def sequences(self) -> int:
        """Packs where rows are packed, else rows."""
        return len(self.sizes)

    def histogram(self) -> list[tuple[int, int]]:
        """Rows by length: (up to so many tokens, rows), each bound twice the one before, the last the longest row."""
        longest, bounds = max(self.lengths, default=0), [64]
        while bounds[-1] < longest:
            bounds.append(bounds[-1] * 2)
        bounds[-1] = max(1, longest)
        counts = [0] * len(bounds)
        for length in self.lengths:
            counts[next(i for i, bound in enumerate(bounds) if length <= bound)] += 1
        return list(zip(bounds, counts, strict=True))


def read_lengths(path: Path) -> list[Any]:
    """The lengths in a `.npy` file: of dialogues a list of numbers, of pairs a list of [prompt, chosen, rejected].

    Raises RefNotFound without the file, IntegrityError where it is not an array of positive whole numbers of shape
    (rows,) or (rows, 3), MissingExtra without numpy.
    """
    if find_spec("numpy") is None:
        raise MissingExtra("numpy", "train")
    import numpy as np

    if not path.is_file():
        raise RefNotFound(f"no file {path}", hint="--lengths wants a .npy file of token lengths")
    how = "numpy.save('lengths.npy', numpy.array(lengths))"
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):  # numpy's own words advise to unpickle what may run code
        raise IntegrityError(f"{path}: not a .npy array of numbers, or not a whole one", hint=how) from None
    right = isinstance(found, np.ndarray) and (found.ndim == 1 or (found.ndim == 2 and found.shape[1] == 3))
    if not right or found.dtype.kind not in "iu":
        raise IntegrityError(
            f"{path}: lengths must be whole numbers, one a dialogue or three (prompt, chosen, rejected) a pair",
            hint=how,
        )
    if found.size == 0 or int(found.min()) < 1:
        raise IntegrityError(f"{path}: " + ("it is empty" if found.size == 0 else "a length is less than 1"))
    if int(found.max()) > _LONGEST:
        raise IntegrityError(f"{path}: a row of {int(found.max()):,} tokens; lengths are counted in tokens")
    lengths: list[Any] = found.tolist()
    return lengths


def measure(lengths: Sequence[Any], config: TrainingConfig) -> Workload:
    """The workload of rows of these raw lengths, cut and packed as `config` says (numbers for `sft`, triples for
    `dpo`).

    Raises UsageError where the lengths are of the other kind.
    """
    pairs = config.stage == "dpo"
    if bool(lengths) and isinstance(lengths[0], int) == pairs:
        kind = "three lengths (prompt, chosen, rejected) a row" if pairs else "one length a row"
        raise UsageError(f"{config.stage} is planned from {kind}", hint="another file for --lengths")
    return _measure_pairs(lengths, config) if pairs else _measure_rows(lengths, config)


def of_packs(packs: PackPlan, lengths: Sequence[int]) -> Workload:
    """The workload of rows that `packs` holds, of these lengths."""
    documents = [length for pack in packs.documents() for length in pack]
    return Workload(
        len(lengths), sum(lengths), tuple(lengths), tuple(packs.lengths()), mean_context(documents),
        packing=packs.how,
    )  # fmt: skip


def of_rows(lengths: Sequence[int]) -> Workload:
    """The workload of dialogues of these lengths, each a sequence of its own."""
    sizes = tuple(lengths)
    return Workload(len(sizes), sum(sizes), sizes, sizes, mean_context(sizes))


def of_pairs(lengths: Sequence[tuple[int, int, int]]) -> Workload:
    """The workload of pairs of these lengths (prompt, chosen, rejected)."""
    both = [(prompt + chosen, prompt + rejected) for prompt, chosen, rejected in lengths]
    single = [length for pair in both for length in pair]
    longer = tuple(max(pair) for pair in both)
    return Workload(len(both), sum(single), longer, longer, mean_context(single), sides=2)


def workload_of(rows: SftRows | PairRows | PackedRows, *, cut: int = 0, cut_tokens: int = 0) -> Workload:
    """The workload of rows that are tokenised; `cut` and `cut_tokens` are what was counted when they were."""
    if isinstance(rows, PackedRows):
        inner = rows.rows
        lengths = inner.lengths() if isinstance(inner, SftRows) else [row.length for row in inner]
        work = of_packs(rows.plan, lengths)
    elif isinstance(rows, PairRows):
        columns = (rows.columns[name].lengths() for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        work = of_pairs(list(zip(*columns, strict=True)))
    else:
        work = of_rows(rows.lengths())
    return _with_cuts(work, cut, cut_tokens)


def plan_steps(work: Workload, config: TrainingConfig, micro: int) -> Plan:
    """The optimiser steps of `work` in passes of `micro` rows. Raises UsageError where nothing would be trained,
    StageRejected where no row is left."""
    if not work.rows:
        raise StageRejected("no row is left to train on", hint="a larger --max-length, or other data")
    return make_plan(
        work.sequences, batch=config.batch_size, micro=micro, epochs=config.epochs, max_steps=config.max_steps,
        warmup=config.warmup, scheduler=config.scheduler, lr=config.lr, seed=config.seed,
        longest=longest_row(work.sizes),
    )  # fmt: skip


def share_of_padding(work: Workload, plan: Plan, processes: int = 1) -> float:
    """The share of padding, 0 to 1, in the first epoch: of all positions in the passes of `processes` processes, those
    that hold no token."""
    positions = 0
    for batch in plan.batches(0):
        ordered = sorted(batch, key=lambda row: work.sizes[row])
        for chunk in even(ordered, math.ceil(len(batch) / (plan.micro * processes))):
            for own in (chunk[rank::processes] for rank in range(min(processes, len(chunk)))):
                positions += work.sides * len(own) * work.sizes[own[-1]]
    return 1 - work.tokens / positions


def _measure_rows(lengths: Sequence[int], config: TrainingConfig) -> Workload:
    how: How | str = getattr(config, "packing", "none")
    if how == "wrapped":
        return of_packs(make_packs(lengths, config.max_length, "wrapped", seed=config.seed), lengths)
    kept = [min(length, config.max_length) for length in lengths]
    work = of_rows(kept)
    if how == "best-fit":
        work = of_packs(make_packs(kept, config.max_length, "best-fit", seed=config.seed), kept)
    return _with_cuts(work, sum(length > config.max_length for length in lengths), sum(lengths) - sum(kept))


def _measure_pairs(lengths: Sequence[Sequence[int]], config: TrainingConfig) -> Workload:
    most = min(int(getattr(config, "max_prompt_length", config.max_length)), config.max_length - 1)
    kept = [_cut_pair(*row, limit=config.max_length, most=most) for row in lengths]
    changed = sum(tuple(row) != after for row, after in zip(lengths, kept, strict=True))
    lost = sum(2 * a + b + c for a, b, c in lengths) - sum(2 * a + b + c for a, b, c in kept)
    return _with_cuts(of_pairs(kept), changed, lost)


def _cut_pair(prompt: int, chosen: int, rejected: int, *, limit: int, most: int) -> tuple[int, int, int]:
    """What `tokens.cut_pair` leaves of a pair, in lengths."""
    longer = max(chosen, rejected)
    if prompt + longer > limit:
        prompt = min(prompt, most)
    room = limit - prompt
    return prompt, min(chosen, room), min(rejected, room)


def _with_cuts(work: Workload, rows: int, tokens: int) -> Workload:
    return replace(work, cut=rows, cut_tokens=tokens)
