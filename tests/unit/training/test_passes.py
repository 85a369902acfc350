"""How global batches are split into forward passes: nothing is lost, doubled or weighed anew by it."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.training.passes import Pass, Passes, accumulation, even, shares
from zephyrctl.training.plan import Plan

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=60)


def plan(rows: int, batch: int, micro: int) -> Plan:
    return Plan(rows, batch, min(micro, batch), 1, 0, "constant", 1e-3, seed=3)


def crew(lengths: list[int], weights: list[float], batch: int, micro: int, world: int) -> list[Passes]:
    made = plan(len(lengths), batch, micro)
    return [Passes(made, lengths, weights, rank=rank, world=world) for rank in range(world)]


@given(SIZES, st.integers(1, 24), st.integers(1, 9), st.integers(1, 7), st.integers(0, 2))
def test_every_row_of_every_global_batch_is_in_one_pass_of_one_process(
    lengths: list[int], batch: int, micro: int, world: int, epoch: int
) -> None:
    ranks = crew(lengths, [float(n) for n in lengths], batch, micro, world)
    for passes in ranks:
        passes.set_epoch(epoch)
    for rows in ranks[0].plan.batches(epoch):
        steps = [passes.step(rows) for passes in ranks]
        assert {len(step) for step in steps} == {math.ceil(len(rows) / (ranks[0].plan.micro * world))}
        assert Counter(
            row for step in steps for one in step if not one.filler for row in one.rows
        ) == Counter(rows)
        assert {one.weight for step in steps for one in step} == {math.fsum(lengths[row] for row in rows)}
        for together in zip(*steps, strict=True):
            assert all(1 <= len(one.rows) <= ranks[0].plan.micro for one in together)
            assert all(set(one.rows) <= set(rows) for one in together)
            real = [len(one.rows) for one in together if not one.filler]
            assert max(real) - min(real) <= 1  # what processes do at one time is of one size


@given(SIZES, st.integers(1, 24), st.integers(1, 9), st.integers(1, 7))
def test_all_processes_go_through_the_same_batches_and_end_together(
    lengths: list[int], batch: int, micro: int, world: int
) -> None:
    ranks = crew(lengths, [1.0] * len(lengths), batch, micro, world)
    counts = {len(list(passes)) for passes in ranks}
    assert counts == {len(passes) for passes in ranks}
    assert len(counts) == 1
    for passes in ranks:
        wanted = [one for rows in passes.plan.batches(0) for one in passes.step(rows)]
        assert [found for [found] in passes] == wanted


@given(SIZES, st.integers(1, 24), st.integers(1, 9), st.integers(1, 7))
def test_the_trainer_accumulates_as_many_passes_as_a_full_batch_has(
    lengths: list[int], batch: int, micro: int, world: int
) -> None:
    passes = crew(lengths, [1.0] * len(lengths), batch, micro, world)[0]
    batches = passes.plan.batches(0)
    counts = [len(passes.step(rows)) for rows in batches]
    assert counts[0] == accumulation(passes.plan, world)
    assert all(
        count == counts[0]
        for rows, count in zip(batches, counts, strict=True)
        if len(rows) == len(batches[0])
    )
    assert counts[-1] <= counts[0]


@given(SIZES, st.integers(1, 9), st.integers(1, 7), st.integers(1, 9), st.integers(1, 7))
def test_how_a_batch_is_split_changes_no_weight_and_no_batch(
    lengths: list[int], micro: int, world: int, other_micro: int, other_world: int
) -> None:
    def batches(size: int, processes: int) -> list[tuple[list[int], set[float]]]:
        ranks = crew(lengths, [n / 2 for n in lengths], 8, size, processes)
        found = []
        for rows in ranks[0].plan.batches(1):
            steps = [one for passes in ranks for one in passes.step(rows)]
            kept = sorted(row for one in steps if not one.filler for row in one.rows)
            found.append((kept, {one.weight for one in steps}))
        return found

    assert batches(micro, world) == batches(other_micro, other_world)


def test_the_rows_of_a_pass_are_of_like_length() -> None:
    lengths = [9, 1, 8, 2, 7, 3, 6, 4]
    passes = crew(lengths, [1.0] * 8, 8, 2, 2)
    together = [step.rows for pair in zip(*(p.step(range(8)) for p in passes), strict=True) for step in pair]
    assert together == [(1, 5), (3, 7), (6, 2), (4, 0)]


def test_a_process_without_a_row_runs_another_one_s_for_nothing() -> None:
    [full], [empty] = (p.step([0]) for p in crew([5], [4.0], 1, 1, 2))
    assert full == Pass((0,), 4.0)
    assert empty == Pass((0,), 4.0, filler=True)


def test_a_step_in_which_nothing_bears_loss_divides_by_one() -> None:
    [one] = crew([5, 6], [0.0, 0.0], 2, 2, 1)[0].step([0, 1])
    assert one.weight == 1.0


def test_epochs_come_in_their_own_order() -> None:
    passes = crew(list(range(1, 41)), [1.0] * 40, 4, 4, 1)[0]
    first = [found for [found] in passes]
    passes.set_epoch(1)
    assert [found for [found] in passes] != first
    passes.set_epoch(0)
    assert [found for [found] in passes] == first


@given(st.lists(st.integers(), max_size=50), st.integers(1, 60))
def test_even_runs_keep_the_order_and_differ_by_one(rows: list[int], parts: int) -> None:
    found = even(rows, parts)
    assert [row for run in found for row in run] == rows
    sizes = [len(run) for run in found]
    assert len(sizes) == parts
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 9), st.integers(1, 7))
def test_every_row_is_scored_once_and_processes_keep_step(lengths: list[int], size: int, world: int) -> None:
    ranks = [shares(lengths, size, rank=rank, world=world) for rank in range(world)]
    assert len({len(found) for found in ranks}) == 1
    scored = [row for found in ranks for one in found if not one.filler for row in one.rows]
    assert sorted(scored) == list(range(len(lengths)))
    assert all(1 <= len(one.rows) <= size for found in ranks for one in found)
