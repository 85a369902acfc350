"""Packs: a plan from lengths alone, in which every token has one place."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.errors import IntegrityError
from zephyrctl.training.packing import How, PackPlan, make_packs, pack_rows
from zephyrctl.training.token_rows import SftRows, SftTokens

HOWS = get_args(How)
LENGTHS = st.lists(st.integers(1, 60), max_size=80)


@given(LENGTHS, st.integers(20, 60), st.sampled_from(HOWS), st.integers(0, 3))
def test_every_token_is_in_one_pack(lengths: list[int], capacity: int, how: How, seed: int) -> None:
    plan = make_packs(lengths, capacity, how, seed=seed)
    places = Counter((p.row, at) for pack in plan.packs for p in pack for at in range(p.start, p.stop))
    assert places == Counter((row, at) for row, length in enumerate(lengths) for at in range(length))
    assert plan.tokens == sum(lengths)
    assert [sum(documents) for documents in plan.documents()] == plan.lengths()
    assert plan == make_packs(lengths, capacity, how, seed=seed)
    assert PackPlan.from_json(plan.to_json()) == plan


@given(LENGTHS, st.integers(20, 60))
def test_best_fit_keeps_rows_whole_and_opens_no_pack_without_need(lengths: list[int], capacity: int) -> None:
    plan = make_packs(lengths, capacity, "best-fit", seed=0)
    assert all(piece.start == 0 for pack in plan.packs for piece in pack)
    assert all(p.stop == lengths[p.row] for pack in plan.packs for p in pack)
    assert all(
        size <= capacity or len(pack) == 1 for size, pack in zip(plan.lengths(), plan.packs, strict=True)
    )
    # A later pack's first row fitted into no earlier pack when it was placed, so it does not fit at the end either.
    sizes = plan.lengths()
    for number, pack in enumerate(plan.packs):
        assert all(sizes[earlier] + lengths[pack[0].row] > capacity for earlier in range(number))


@pytest.mark.parametrize(
    ("lengths", "packs"),
    [([6, 5, 4, 3], [[6, 4], [5, 3]]), ([8, 7, 2, 3], [[8, 2], [7, 3]]), ([12, 1], [[12], [1]]), ([], [])],
)
def test_a_row_joins_the_fullest_pack_with_room(lengths: list[int], packs: list[list[int]]) -> None:
    assert make_packs(lengths, 10, "best-fit", seed=0).documents() == packs


@given(LENGTHS, st.integers(1, 60), st.integers(0, 3))
def test_wrapped_packs_are_full_but_for_the_last(lengths: list[int], capacity: int, seed: int) -> None:
    plan = make_packs(lengths, capacity, "wrapped", seed=seed)
    assert len(plan) == -(-sum(lengths) // capacity)
    assert plan.lengths()[:-1] == [capacity] * (len(plan) - 1 if plan.packs else 0)
    line = [piece for pack in plan.packs for piece in pack]
    assert all(b.start == (a.stop if a.row == b.row else 0) for a, b in pairwise(line))


def test_the_seed_decides_who_shares_a_pack_and_not_how_many_there_are() -> None:
    lengths = [5] * 40
    one, two = (make_packs(lengths, 10, "best-fit", seed=seed) for seed in (0, 1))
    assert len(one) == len(two) == 20
    assert one != two
    assert make_packs(lengths, 7, "wrapped", seed=0) != make_packs(lengths, 7, "wrapped", seed=1)


def test_numbers_of_a_plan() -> None:
    plan = make_packs([6, 6, 3], 10, "best-fit", seed=0)
    assert (len(plan), plan.tokens, sorted(plan.lengths())) == (2, 15, [6, 9])
    assert make_packs([], 10, "best-fit", seed=0).tokens == 0
    assert make_packs([25], 10, "wrapped", seed=0).lengths() == [10, 10, 5]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"how":"wrapped"}', '{"how":"wrapped","capacity":4,"packs":[[[1]]]}']
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(IntegrityError, match="not a pack plan"):
        PackPlan.from_json(text)


def row(number: int, length: int) -> SftTokens:
    return SftTokens([number] * length, [-100] + [number] * (length - 1))


def test_packed_rows_keep_their_borders() -> None:
    rows = SftRows(row(i, n) for i, n in enumerate((3, 5, 2)))
    packs = pack_rows(rows, 7)
    assert len(packs) == 2
    assert [p.seq_lengths for p in packs] == [[5, 2], [3]]
    assert packs[0].input_ids == [1] * 5 + [2] * 2
    assert packs[0].labels == [-100, 1, 1, 1, 1, -100, 2]
    assert packs.lengths() == [p.length for p in packs] == [7, 3]
    assert packs[:1] == [packs[0]]
    assert packs[-1].seq_lengths == [3]


def test_the_rest_of_a_cut_row_begins_without_loss() -> None:
    packs = pack_rows([row(7, 5)], 3, "wrapped")
    assert [p.labels for p in packs] == [[-100, 7, 7], [-100, 7]]


def test_the_handbooks_packs_and_steps() -> None:
    """207,865 lengths of mean 1,372 end to end: 272 steps of 512 sequences of 2,048 tokens, as the handbook saw."""
    drawn = np.random.default_rng(0).gamma(3.0, 1.0, 207_865)
    lengths = np.maximum(1, np.rint(drawn * 1372 / drawn.mean())).astype(int)
    assert lengths.mean() == pytest.approx(1372, abs=1)
    plan = make_packs(lengths, 2048, "wrapped", seed=42)
    assert len(plan) == -(-int(lengths.sum()) // 2048)
    assert -(-len(plan) // 512) == 272
