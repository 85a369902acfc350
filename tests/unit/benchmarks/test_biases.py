import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.benchmarks.biases import (
    Game,
    correlation,
    first_shown_preferred,
    flip_rate,
    longer_preferred,
)

MARKS = st.sampled_from([0.0, 0.5, 1.0])


def games(*marks, **more):
    return [Game(f"p{i}", "turn 1", forward, backward, **more) for i, (forward, backward) in enumerate(marks)]


@given(st.lists(MARKS, min_size=1))
def test_a_judge_that_agrees_with_itself_has_no_position_bias(marks):
    fair = games(*[(m, m) for m in marks])
    assert first_shown_preferred(fair).value == pytest.approx(0.5)
    assert flip_rate(fair).value == 0


def test_a_judge_that_always_takes_the_first_is_seen_whatever_the_answers_are_worth():
    biased = games(*[(1.0, 0.0)] * 10)
    assert first_shown_preferred(biased).value == 1
    assert flip_rate(biased).value == 1
    assert all(game.score == 0.5 for game in biased)


@given(st.lists(st.tuples(MARKS, MARKS), min_size=1))
def test_position_bias_is_the_same_from_either_side(marks):
    ours = games(*marks)
    theirs = games(*[(1 - b, 1 - f) for f, b in marks])
    assert first_shown_preferred(ours).value == pytest.approx(first_shown_preferred(theirs).value)
    assert flip_rate(ours).value == flip_rate(theirs).value


def test_half_judged_and_unasked_pairs_do_not_enter():
    rows = [*games((1.0, None), (None, 0.0)), *games((0.5, 0.5), asked=False)]
    assert first_shown_preferred(rows) is None
    assert flip_rate(rows) is None
    assert [game.score for game in rows] == [None, None, 0.5]


def test_length_bias_counts_the_longer_answer_on_either_side():
    rows = [*games((1.0, 1.0), longer=True), Game("q", "t", 0.0, 0.0, longer=False), *games((1.0, 1.0))]
    found = longer_preferred(rows)
    assert (found.value, found.n) == (1.0, 2)


def test_correlation():
    line = [(float(x), 3.0 * x + 1) for x in range(10)]
    assert correlation(line) == pytest.approx(1)
    assert correlation([(x, -y) for x, y in line]) == pytest.approx(-1)
    assert correlation([(1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]) is None
    assert correlation(line[:2]) is None
    rng = random.Random(1)
    assert abs(correlation([(rng.random(), rng.random()) for _ in range(2000)])) < 0.08
