"""The plan: batches, steps and learning rates, known before anything runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.errors import UsageError
from zephyrctl.training.plan import Plan, longest_row, make_plan


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
    epoch=st.integers(0, 3),
    seed=st.integers(0, 5),
    longest=st.integers(0, 199),
)
def test_every_row_is_in_one_batch_and_the_longest_in_the_first(
    rows: int, batch: int, epoch: int, seed: int, longest: int
) -> None:
    longest %= rows
    made = plan(rows, batch=batch, warmup=0, seed=seed, longest=longest)
    batches = made.batches(epoch)
    assert sorted(row for one in batches for row in one) == list(range(rows))
    assert [len(one) for one in batches[:-1]] == [batch] * (made.steps_per_epoch - 1)
    if epoch == 0:
        assert longest in batches[0]
        unmoved = plan(rows, batch=batch, warmup=0, seed=seed).batches(0)
        moved = sum(a != b for x, y in zip(batches, unmoved, strict=True) for a, b in zip(x, y, strict=True))
        assert moved in (0, 2)


@given(st.lists(st.integers(1, 9), min_size=1))
def test_the_longest_row_is_the_first_of_its_length(lengths: list[int]) -> None:
    assert longest_row(lengths) == lengths.index(max(lengths))


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
