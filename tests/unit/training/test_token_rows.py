"""Token rows in flat arrays: what goes in comes out, from memory and from disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.training.token_rows import PairRows, PairTokens, SftRows, SftTokens

IDS = st.lists(st.integers(0, 200_000), max_size=12)


@st.composite
def dialogues(draw: st.DrawFn) -> SftTokens:
    ids = draw(IDS)
    return SftTokens(ids, [token if draw(st.booleans()) else -100 for token in ids])


@given(st.lists(dialogues(), max_size=8), st.lists(dialogues(), max_size=3))
def test_dialogues_come_out_as_they_went_in(rows: list[SftTokens], more: list[SftTokens]) -> None:
    kept = SftRows(rows)
    kept.extend(SftRows(more))
    both = rows + more
    assert list(kept) == both
    assert kept == both
    assert len(kept) == len(both)
    assert kept.lengths() == [row.length for row in both]
    assert kept[1:] == both[1:]
    assert pickle.loads(pickle.dumps(kept)) == both
    if both:
        assert kept[-1] == both[-1]
    with pytest.raises(IndexError):
        kept[len(both)]


@given(st.lists(st.tuples(IDS, IDS, IDS), max_size=6))
def test_pairs_come_out_as_they_went_in(rows: list[tuple[list[int], list[int], list[int]]]) -> None:
    pairs = [PairTokens(*row) for row in rows]
    assert PairRows(pairs) == pairs
    assert PairRows(pairs).lengths() == [pair.length for pair in pairs]
    assert PairRows(pairs) != [*pairs, PairTokens([1], [2], [3])]


@pytest.mark.parametrize("rows", [[], [SftTokens([5, 70_000, 1], [-100, 70_000, 1]), SftTokens([9], [-100])]])
def test_rows_are_mapped_from_disk(tmp_path: Path, rows: list[SftTokens]) -> None:
    SftRows(rows).save(tmp_path)
    opened = SftRows.open(tmp_path)
    assert opened == rows
    assert opened.lengths() == [row.length for row in rows]
    if rows:
        assert isinstance(opened.columns["input_ids"].values, np.memmap)
        assert type(opened[0].input_ids[1]) is int


def test_a_token_takes_five_bytes(tmp_path: Path) -> None:
    SftRows(SftTokens(list(range(1000)), [-100] * 1000) for _ in range(20)).save(tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 5.1 * 20_000
