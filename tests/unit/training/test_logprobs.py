"""Log-probabilities and the scores made of them."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.training.logprobs import answer_logprobs, batches, dialogue_loss, preference_scores
from zephyrctl.training.model import load_model
from zephyrctl.training.tokens import PairTokens, SftTokens

PAIRS = [
    PairTokens([5, 6, 7], [8, 9, 1], [4]),
    PairTokens([9], [10], [11, 12, 13, 1]),
    PairTokens([3, 3], [4], [5]),
]


@pytest.mark.parametrize("size", [1, 2, 8])
def test_answers_are_scored_alike_in_any_batch(tiny: Path, size: int) -> None:
    import torch

    model = load_model(tiny).eval()
    chosen, rejected = answer_logprobs(model, PAIRS, pad=3, size=size, autocast=contextlib.nullcontext)
    for pair, got_chosen, got_rejected in zip(PAIRS, chosen, rejected, strict=True):
        for answer, got in ((pair.chosen_ids, got_chosen), (pair.rejected_ids, got_rejected)):
            ids = torch.tensor([pair.prompt_ids + answer])
            with torch.no_grad():
                steps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            start = len(pair.prompt_ids) - 1
            wanted = sum(float(steps[start + k, token]) for k, token in enumerate(answer))
            assert got == pytest.approx(wanted, abs=1e-4)


def test_held_out_loss_counts_tokens_not_rows(tiny: Path) -> None:
    model = load_model(tiny).eval()
    rows = [SftTokens([5, 6, 7], [-100, 6, 7]), SftTokens([5, 6], [-100, 6])]
    both = dialogue_loss(model, rows, pad=3, size=2, autocast=contextlib.nullcontext)
    one, two = (dialogue_loss(model, [r], pad=3, size=2, autocast=contextlib.nullcontext) for r in rows)
    assert both == pytest.approx((2 * one + two) / 3, abs=1e-5)


def test_equal_models_score_ln_2_and_no_win() -> None:
    scores = preference_scores(([-3.0, -5.0], [-4.0, -1.0]), ([-3.0, -5.0], [-4.0, -1.0]), 0.1)
    assert scores["loss"] == pytest.approx(math.log(2))
    assert scores["accuracy"] == 0
    assert scores["margin"] == 0


@given(st.lists(st.tuples(*[st.floats(-1e4, 0)] * 4), min_size=1, max_size=9), st.floats(0.01, 1))
def test_scores_follow_the_formula(values: list[tuple[float, ...]], beta: float) -> None:
    pc, pr, rc, rr = (list(column) for column in zip(*values, strict=True))
    scores = preference_scores((pc, pr), (rc, rr), beta)
    margins = [beta * ((a - c) - (b - d)) for a, b, c, d in values]
    assert scores["margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-6)
    assert scores["loss"] >= 0
    assert math.isfinite(scores["loss"])
    assert scores["loss"] >= -scores["margin"] - 1e-6


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 9))
def test_batches_hold_every_row_once(lengths: list[int], size: int) -> None:
    made = batches(lengths, size)
    assert sorted(row for batch in made for row in batch) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in made)
