"""A run planned from the lengths of its rows alone."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.chat.render import RenderedPair
from zephyrctl.errors import IntegrityError, RefNotFound, UsageError, ZephyrError
from zephyrctl.stages.dpo.config import DpoConfig
from zephyrctl.stages.sft.config import SftConfig
from zephyrctl.training.batches import pair_sequences
from zephyrctl.training.lengths import measure, plan_steps, read_lengths, share_of_padding
from zephyrctl.training.passes import Passes
from zephyrctl.training.token_rows import PairTokens
from zephyrctl.training.tokens import cut_pair


def ultrachat_like(rows: int, mean: int, seed: int = 0) -> list[int]:
    """Lengths as dialogues have them: skewed, scaled to the mean."""
    draw = random.Random(seed)
    raw = [draw.lognormvariate(0, 0.5) for _ in range(rows)]
    scale = mean * rows / sum(raw)
    return [max(1, round(length * scale)) for length in raw]


def test_the_papers_sft_takes_272_steps_with_wrapped_packing() -> None:
    lengths = ultrachat_like(207_865, 1372)
    config = SftConfig(packing="wrapped", max_length=2048, batch_size=512)
    work = measure(lengths, config)
    plan = plan_steps(work, config, 4)
    assert work.tokens == sum(lengths) == sum(work.sizes)
    assert plan.steps == math.ceil(math.ceil(sum(lengths) / 2048) / 512) == 272
    assert work.cut == 0


def test_best_fit_packs_are_fuller_than_rows_and_cut_what_is_too_long() -> None:
    lengths = ultrachat_like(3000, 1372)
    rows = measure(lengths, SftConfig(max_length=2048))
    packed = measure(lengths, SftConfig(max_length=2048, packing="best-fit"))
    assert rows.cut == packed.cut == sum(length > 2048 for length in lengths) > 0
    assert rows.tokens == packed.tokens == sum(lengths) - rows.cut_tokens
    assert packed.sequences < rows.sequences
    assert sum(packed.sizes) / (2048 * packed.sequences) > 0.95
    assert packed.context == pytest.approx(rows.context), "packed rows never see each other"


def test_padding_is_that_of_the_passes() -> None:
    config = SftConfig(max_length=64, batch_size=4, warmup=0)
    work = measure([10, 20, 30, 40], config)
    assert share_of_padding(work, plan_steps(work, config, 1)) == 0
    assert share_of_padding(work, plan_steps(work, config, 2)) == pytest.approx(1 - 100 / 120)
    assert share_of_padding(work, plan_steps(work, config, 4)) == pytest.approx(1 - 100 / 160)
    of_two = share_of_padding(work, plan_steps(work, config, 2), processes=2)
    assert of_two == pytest.approx(1 - 100 / (2 * 30 + 2 * 40)), "each takes every second row of a pass"


@given(
    st.lists(st.tuples(*[st.integers(1, 30)] * 3), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_padding_is_what_the_processes_really_pad(
    lengths: list[tuple[int, int, int]], micro: int, world: int
) -> None:
    config = DpoConfig(max_length=64, max_prompt_length=32, batch_size=5, warmup=0)
    work = measure(lengths, config)
    plan = plan_steps(work, config, micro)
    pairs = [PairTokens([1] * p, [1] * c, [1] * r) for p, c, r in lengths]
    padded = real = 0
    for rank in range(world):
        for (one,) in Passes(plan, work.sizes, [1.0] * len(pairs), rank=rank, world=world):
            if not one.filler:
                sequences = pair_sequences([pairs[row] for row in one.rows])
                widths = [len(sequence.ids) for sequence in sequences]
                padded, real = padded + len(widths) * max(widths), real + sum(widths)
    assert share_of_padding(work, plan, world) == pytest.approx(1 - real / padded)


@given(st.lists(st.tuples(*[st.integers(1, 60)] * 3), min_size=1, max_size=15), st.integers(1, 40))
def test_pairs_are_cut_as_their_tokens_are(lengths: list[tuple[int, int, int]], most: int) -> None:
    config = DpoConfig(max_length=64, max_prompt_length=most)
    kept = []
    for prompt, chosen, rejected in lengths:
        pair = cut_pair(
            RenderedPair([1] * prompt, [2] * chosen, [3] * rejected), max_length=64, max_prompt_length=most
        )
        kept.append((len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)))
    work = measure(lengths, config)
    assert work.tokens == sum(2 * p + c + r for p, c, r in kept)
    assert work.sizes == tuple(p + max(c, r) for p, c, r in kept)
    assert work.cut == sum(a != b for a, b in zip(lengths, kept, strict=True))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_the_histogram_counts_every_row_once(lengths: list[int]) -> None:
    found = measure(lengths, SftConfig(max_length=8192)).histogram()
    assert sum(n for _, n in found) == len(lengths)
    assert [bound for bound, _ in found] == sorted(bound for bound, _ in found)
    assert found[-1][0] == max(lengths)
    assert found[-1][1] > 0


def test_lengths_come_from_a_numpy_file(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "rows.npy", np.array([3, 4], dtype=np.uint16))
    assert read_lengths(tmp_path / "rows.npy") == [3, 4]
    np.save(tmp_path / "pairs.npy", np.array([[3, 4, 5]]))
    pairs = read_lengths(tmp_path / "pairs.npy")
    assert measure(pairs, DpoConfig()).tokens == 15
    with pytest.raises(UsageError, match="one length a row"):
        measure(pairs, SftConfig())
    with pytest.raises(UsageError, match="three lengths"):
        measure([3, 4], DpoConfig())


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (None, RefNotFound, "no file"),
        (b"not numpy", IntegrityError, "not a .npy"),
        ([1.5], IntegrityError, "whole numbers"),
        ([[1, 2]], IntegrityError, "whole numbers"),
        ([], IntegrityError, "whole numbers|empty"),
        ([4, 0], IntegrityError, "less than 1"),
        ([{"a": 1}], IntegrityError, "not a .npy"),
        ([4, 10**9], IntegrityError, "1,000,000,000 tokens"),
    ],
)
def test_files_that_hold_no_lengths(
    content: Any, error: type[ZephyrError], match: str, tmp_path: Path
) -> None:
    import numpy as np

    path = tmp_path / "lengths.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, np.array(content), allow_pickle=True)
    with pytest.raises(error, match=match):
        read_lengths(path)
