"""The permutation tests under the judge audit: exact where they can be counted out, near it elsewhere."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.judges import permutation
from zephyrctl.judges.permutation import FEW, chi_squared_tail, normal_tail, place_scores, places, slope


def counted_out(blocks: list[tuple[list[float], list[float]]]) -> float:
    """The exact p-value of the slope: every way to deal x anew within every block."""
    centred = [([v - sum(x) / len(x) for v in x], y) for x, y in blocks]
    seen = sum(a * b for x, y in centred for a, b in zip(x, y, strict=True))
    ways = [list(itertools.permutations(x)) for x, _ in centred]
    far = total = 0
    for dealt in itertools.product(*ways):
        drawn = sum(
            a * b for x, (_, y) in zip(dealt, centred, strict=True) for a, b in zip(x, y, strict=True)
        )
        far += abs(drawn) >= abs(seen) - 1e-9
        total += 1
    return far / total


def test_the_slope_over_few_blocks_is_what_counting_out_gives() -> None:
    rng = random.Random(3)
    for _ in range(5):
        blocks = [
            ([rng.gauss(0, 1) for _ in range(3)], [rng.gauss(0, 1) for _ in range(3)]) for _ in range(4)
        ]
        assert slope(blocks, "t").p == pytest.approx(counted_out(blocks), abs=0.035)


def test_the_normal_law_takes_over_without_a_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    blocks = [
        ([rng.gauss(0, 1) for _ in range(4)], [float(rng.randint(1, 5)) for _ in range(4)])
        for _ in range(FEW)
    ]
    for x, y in blocks:
        for i, value in enumerate(x):
            y[i] += 0.15 * value
    drawn = slope(blocks, "t")
    monkeypatch.setattr(permutation, "FEW", 0)
    law = slope(blocks, "t")
    assert drawn.value == law.value
    assert drawn.p == pytest.approx(law.p, abs=0.03)


def test_the_slope_is_least_squares_within_blocks() -> None:
    blocks = [([0, 1, 2], [5 + 0.5 * x for x in (0, 1, 2)]), ([10, 14], [1.0, 3.0]), ([3, 3], [1, 5])]
    found = slope(blocks, "t")
    assert found.value == pytest.approx(0.5)
    assert found.blocks == 2  # equal lengths say nothing of length


def test_what_never_varies_has_no_slope_and_no_p() -> None:
    for blocks in ([], [([1, 1], [2, 3])], [([1, 1], [2, 3]), ([4, 4, 4], [1, 2, 3])]):
        found = slope(blocks, "t")
        assert (found.value, found.p, found.blocks) == (None, None, 0)
    level = slope([([1, 2], [3, 3])], "t")
    assert level.p is None


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 50), st.integers(1, 10)), min_size=2, max_size=4),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_blocks_changes_nothing(raw: list[list[tuple[int, int]]], rng: random.Random) -> None:
    blocks = [([float(x) for x, _ in b], [float(y) for _, y in b]) for b in raw]
    mixed = list(blocks)
    rng.shuffle(mixed)
    assert slope(blocks, "t") == slope(mixed, "t")


def null_rates(blocks: int, runs: int = 400) -> tuple[float, float]:
    """How often slope and places cry at p < 0.05 where there is nothing."""
    rng = random.Random(blocks)
    steep = somewhere = 0
    for _ in range(runs):
        found = slope(
            [
                ([rng.random() for _ in range(4)], [float(rng.randint(1, 5)) for _ in range(4)])
                for _ in range(blocks)
            ],
            "t",
        )
        steep += found.p is not None and found.p < 0.05
        profile = places([[rng.gauss(0, 1) for _ in range(4)] for _ in range(blocks)], 1.0, "t")
        somewhere += profile.p is not None and profile.p < 0.05
    return steep / runs, somewhere / runs


def test_false_alarms_are_as_rare_as_stated() -> None:
    steep, somewhere = null_rates(80)
    assert 0.02 < steep < 0.09
    assert 0.01 < somewhere < 0.08  # the doubled p-value is a little too careful


def slope_less_authors(rng: random.Random, blocks: int) -> float | None:
    """The p-value where neither length nor score means anything, after the means of four authors, who wrote one text
    for each prompt, were taken out of both."""
    sides = []
    for _ in range(2):
        rows = [[rng.gauss(0, 1) for _ in range(4)] for _ in range(blocks)]
        means = [sum(row[i] for row in rows) / blocks for i in range(4)]
        sides.append([[value - mean for value, mean in zip(row, means, strict=True)] for row in rows])
    return slope(list(zip(*sides, strict=True)), "t", spent=3).p


@pytest.mark.parametrize("blocks", [2, 4])
def test_what_authors_took_out_is_no_reason_for_false_alarms(blocks: int) -> None:
    rng = random.Random(blocks)
    found = [slope_less_authors(rng, blocks) for _ in range(150)]
    assert sum(p is not None and p < 0.05 for p in found) / len(found) < 0.1
    assert sum(p is not None and p < 0.5 for p in found) / len(found) > 0.3


def test_without_freedom_left_there_is_a_slope_and_no_p() -> None:
    found = slope([([0.0, 1.0], [0.0, 2.0])], "t", spent=1)
    assert (found.value, found.p) == (2.0, None)


def test_places_finds_a_trend_in_points_and_a_pattern_that_is_no_trend() -> None:
    rng = random.Random(1)
    ends = [0.3, 0.0, 0.0, -0.1]
    straight = [[e + rng.gauss(0, 0.3) for e in (0.15, 0.05, -0.05, -0.15)] for _ in range(200)]
    found = places(straight, 200 * sum(w * w for w in place_scores(4)), "t")
    assert found.trend == pytest.approx(0.3, abs=0.08)
    assert found.p_trend is not None
    assert found.p_trend < 1e-6
    middle = [[e + rng.gauss(0, 0.3) for e in (-0.2, 0.2, 0.2, -0.2)] for _ in range(200)]
    bent = places(middle, 1.0, "t")
    assert bent.p_trend is not None
    assert bent.p_trend > 0.01
    assert bent.p_any is not None
    assert bent.p_any < 1e-6
    assert bent.p is not None
    assert bent.p < 1e-6
    assert places([], 1.0, "t").p is None
    assert places([ends[:1]], 1.0, "t").p is None


def test_profiles_of_several_sizes_go_together() -> None:
    rng = random.Random(2)
    mixed = [[rng.gauss(0.4 * w, 0.3) for w in place_scores(size)] for size in (2, 3, 4) * 60]
    found = places(mixed, sum(w * w for p in mixed for w in place_scores(len(p))), "t")
    assert found.trend == pytest.approx(0.4, abs=0.1)
    assert found.p is not None
    assert found.p < 1e-4
    assert found.blocks == 180


@pytest.mark.parametrize(
    ("value", "freedom", "tail"),
    [(3.841458820694124, 1, 0.05), (5.991464547107979, 2, 0.05), (11.344866730144373, 3, 0.01),
     (9.487729036781154, 4, 0.05), (20.515005652432873, 5, 0.001), (0.0, 3, 1.0)],
)  # fmt: skip
def test_tails_are_those_of_the_tables(value: float, freedom: int, tail: float) -> None:
    assert chi_squared_tail(value, freedom) == pytest.approx(tail, rel=1e-9)


def test_the_normal_tail_is_two_sided() -> None:
    assert normal_tail(1.959963984540054) == pytest.approx(0.05)
    assert normal_tail(-2.5758293035489004) == pytest.approx(0.01)
    assert normal_tail(0) == 1.0


def test_place_scores_run_from_a_half_to_minus_a_half() -> None:
    assert place_scores(4) == pytest.approx([0.5, 1 / 6, -1 / 6, -0.5])
    assert place_scores(2) == [0.5, -0.5]
    assert place_scores(1) == [0.0]
    assert all(math.isclose(sum(place_scores(n)), 0, abs_tol=1e-12) for n in range(1, 9))
