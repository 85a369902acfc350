"""Sizes of steps: every row counted once an epoch, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.training.flops import flops_per_token
from zephyrctl.training.footprint import read_shape
from zephyrctl.training.plan import make_plan
from zephyrctl.training.steps import StepSizes


def sizes(documents: list[list[int]], batch: int, epochs: float = 2) -> StepSizes:
    plan = make_plan(
        len(documents), batch=batch, micro=1, epochs=epochs, max_steps=None, warmup=0.0, scheduler="constant",
        lr=1.0, seed=3,
    )  # fmt: skip
    return StepSizes(plan, documents, {"length": [sum(lengths) for lengths in documents]})


@given(
    documents=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3), min_size=1, max_size=20),
    batch=st.integers(1, 7),
)
def test_an_epochs_steps_add_up(documents: list[list[int]], batch: int) -> None:
    found = sizes(documents, batch)
    per_epoch = found.plan.steps_per_epoch
    for first in (1, per_epoch + 1):
        steps = range(first, first + per_epoch)
        assert sorted(row for step in steps for row in found.rows(step)) == list(range(len(documents)))
        assert sum(found.tokens(step) for step in steps) == sum(map(sum, documents))
        whole = sum(found.lengths(step)["length"] * len(found.rows(step)) for step in steps)
        assert whole == pytest.approx(sum(map(sum, documents)))
    assert found.rows(1) == found.rows(1), "going back an epoch gives the same rows"


def test_arithmetic_counts_each_document_apart(tiny: Path) -> None:
    shape = read_shape(tiny)
    one, two = sizes([[40]], 1).flops(1, shape), sizes([[20, 20]], 1).flops(1, shape)
    assert one > two > 0
    work = flops_per_token(shape, 20.5)
    assert work is not None
    assert one == pytest.approx(work.model * 40)
    assert sizes([[40]], 1).flops(1, shape, lora=True) < one
