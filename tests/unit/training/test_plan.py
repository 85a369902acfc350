"""The plan: batches, steps and learning rates, known before anything runs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.errors import UsageError
from zephyrctl.training.packing import pack_plan, pack_rows
from zephyrctl.training.plan import MicroBatches, Plan, make_plan
from zephyrctl.training.tokens import SftTokens


def plan(rows: int = 100, **changes: object) -> Plan:
    settings: dict[str, object] = {
        "batch": 8,
        "micro": 4,
        "epochs": 1.0,
        "max_steps": None,
        "warmup": 0.1,
        "scheduler": "cosine",
        "lr": 1e-3,
        "seed": 0,
    }
    return make_plan(rows, **{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (7, 0.3), (40, 0.1), (40, 0.0)])
def test_learning_rates_are_those_of_transformers(scheduler: str, steps: int, warmup: float) -> None:
    import torch
    from transformers import get_scheduler

    made = plan(max_steps=steps, warmup=warmup, scheduler=scheduler)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    name = "constant_with_warmup" if scheduler == "constant" else scheduler
    schedule = get_scheduler(name, optimizer, num_warmup_steps=made.warmup_steps, num_training_steps=steps)
    for rate in made.learning_rates():
        assert rate == pytest.approx(schedule.get_last_lr()[0], abs=1e-15)
        optimizer.step()
        schedule.step()


@given(
    rows=st.integers(1, 200),
    batch=st.integers(1, 50),
    micro=st.integers(1, 60),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_micro_batches_only_split_global_batches(
    rows: int, batch: int, micro: int, epoch: int, seed: int
) -> None:
    made = plan(rows, batch=batch, micro=micro, warmup=0, seed=seed)
    sampler = MicroBatches(made, [7 * i % 13 for i in range(rows)])
    sampler.sampler.set_epoch(epoch)
    passes = list(sampler)
    assert len(passes) == len(sampler)
    assert sorted(r for p in passes for r in p) == list(range(rows))
    steps = [passes[i : i + made.accumulation] for i in range(0, len(passes), made.accumulation)]
    assert len(steps) == made.steps_per_epoch
    for step, planned in zip(steps, made.batches(epoch), strict=True):
        assert sorted(r for p in step for r in p) == sorted(planned)
        assert all(1 <= len(p) <= micro for p in step)


def test_epochs_differ_and_repeat() -> None:
    made = plan()
    assert made.batches(0) != made.batches(1)
    assert made.batches(1) == plan(micro=1).batches(1)
    assert made.batches(0) != plan(seed=1).batches(0)


@pytest.mark.parametrize(
    ("rows", "epochs", "steps"),
    [(100, 1, 13), (100, 3, 39), (100, 0.5, 7), (3, 1, 1), (16, 1, 2), (8, 0.01, 1)],
)
def test_steps(rows: int, epochs: float, steps: int) -> None:
    made = plan(rows, epochs=epochs, warmup=0)
    assert made.steps == steps
    assert made.warmup_steps == 0


def test_max_steps_win_over_epochs() -> None:
    assert plan(max_steps=5, epochs=9).steps == 5


def test_warm_up_is_rounded_up() -> None:
    assert plan(max_steps=11).warmup_steps == 2


def test_a_run_that_would_train_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="train nothing") as caught:
        plan(4)
    assert "warmup=0" in str(caught.value.hint)
    with pytest.raises(UsageError, match="no row"):
        plan(0)


def test_fewer_rows_than_a_batch_make_one_short_batch() -> None:
    made = plan(5, batch=32, micro=4, warmup=0)
    assert [len(batch) for batch in made.batches(0)] == [5]
    assert made.accumulation == 2


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(20, 60))
def test_packs_hold_every_row_once_within_capacity(lengths: list[int], capacity: int) -> None:
    packs = pack_plan(lengths, capacity)
    assert sorted(r for p in packs for r in p) == list(range(len(lengths)))
    assert all(sum(lengths[r] for r in p) <= capacity or len(p) == 1 for p in packs)
    if lengths and max(lengths) <= capacity:
        assert len(packs) <= 2 * math.ceil(sum(lengths) / capacity)
    assert packs == pack_plan(lengths, capacity)


def test_packed_rows_keep_their_borders() -> None:
    rows = [SftTokens([i] * n, [-100] * (n - 1) + [i]) for i, n in enumerate((3, 5, 2))]
    packs = pack_rows(rows, 7)
    assert [p.seq_lengths for p in packs] == [[5, 2], [3]]
    assert packs[0].input_ids == [1] * 5 + [2] * 2
    assert packs[0].labels == [-100] * 4 + [1] + [-100, 2]
