import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.benchmarks.statistics import (
    MIN_BOOTSTRAP_CLUSTERS,
    Unit,
    fill_bounds,
    mean_interval,
    paired_difference,
)
from zephyrctl.student_t import student_t_quantile

VALUES = st.floats(-10, 10, allow_nan=False).map(lambda x: round(x, 3))


@st.composite
def unit_lists(draw, seeds=("",), most=8):
    prompts = draw(st.integers(1, most))
    return [
        Unit(f"p{p}", f"turn {t}", draw(VALUES), seed)
        for p in range(prompts)
        for t in range(draw(st.integers(1, 2)))
        for seed in seeds
    ]


def simulated(rng, prompts, seeds=1, turns=1, between=0.4, seed_spread=0.0, noise=0.3):
    of_prompt = [rng.gauss(0, between) for _ in range(prompts)]
    of_seed = [rng.gauss(0, seed_spread) for _ in range(seeds)]
    return [
        Unit(f"p{p}", f"turn {t}", of_prompt[p] + of_seed[s] + rng.gauss(0, noise), str(s))
        for p in range(prompts)
        for s in range(seeds)
        for t in range(turns)
    ]


def test_t_quantiles_match_the_tables():
    for df, expected in ((1, 12.7062), (2, 4.30265), (5, 2.57058), (30, 2.04227), (1000, 1.96234)):
        assert student_t_quantile(0.975, df) == pytest.approx(expected, abs=1e-5)
    assert student_t_quantile(0.025, 5) == pytest.approx(-2.57058, abs=1e-5)
    assert student_t_quantile(0.975, 1e8) == pytest.approx(1.959964, abs=1e-6)


@pytest.mark.parametrize(
    ("prompts", "seeds", "turns", "method"),
    [(12, 1, 2, "clustered-t"), (40, 1, 2, "bootstrap"), (60, 3, 1, "crossed-t")],
)
def test_coverage_is_near_nominal(prompts, seeds, turns, method):
    rng = random.Random(7)
    draws = 250
    hits = 0
    for _ in range(draws):
        found = mean_interval(simulated(rng, prompts, seeds, turns, seed_spread=0.08 if seeds > 1 else 0.0))
        assert found.method == method
        hits += found.low <= 0 <= found.high
    assert 0.90 <= hits / draws <= 0.99


def test_rows_of_one_prompt_do_not_count_as_independent():
    rng = random.Random(3)
    rows = simulated(rng, 40, noise=0.0)
    doubled = rows + [Unit(r.prompt, "turn 1", r.value, r.seed) for r in rows]
    once, twice = mean_interval(rows), mean_interval(doubled)
    assert twice.n == 2 * once.n
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_spread_between_seeds_widens_the_interval():
    rng = random.Random(11)
    rows = simulated(rng, 100, seeds=3)
    apart = [Unit(r.prompt, r.key, r.value + (int(r.seed) - 1) * 0.5, r.seed) for r in rows]
    narrow, wide = mean_interval(rows), mean_interval(apart)
    assert wide.value == pytest.approx(narrow.value)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


@given(unit_lists(), st.randoms())
def test_row_order_does_not_matter(rows, rng):
    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert mean_interval(shuffled) == mean_interval(rows)


@given(unit_lists(seeds=("1", "2", "3")))
def test_an_interval_holds_its_mean(rows):
    found = mean_interval(rows)
    assert found.value == pytest.approx(math.fsum(r.value for r in rows) / len(rows))
    if found.low is not None:
        assert found.low <= found.value <= found.high
        assert found.clusters > 1


@settings(max_examples=20, deadline=None)
@given(unit_lists(most=40), st.integers(0, 2**32))
def test_swapping_the_sides_mirrors_the_difference(rows, seed):
    rng = random.Random(seed)
    other = [Unit(r.prompt, r.key, rng.gauss(0, 1), r.seed) for r in rows]
    one, two = paired_difference(rows, other), paired_difference(other, rows)
    assert one.value == pytest.approx(-two.value)
    assert one.resolved == two.resolved
    if one.low is not None:
        assert (one.low, one.high) == pytest.approx((-two.high, -two.low))


@given(unit_lists(most=40))
def test_equal_sides_are_never_resolved(rows):
    found = paired_difference(rows, rows)
    assert found.value == 0
    assert not found.resolved


def test_only_common_rows_are_paired():
    one = [Unit(f"p{i}", "turn 1", 1.0) for i in range(10)]
    other = [Unit(f"p{i}", "turn 1", 0.0) for i in range(4, 14)]
    found = paired_difference(one, other)
    assert (found.n, found.value) == (6, 1.0)
    assert paired_difference(one[:4], other) is None


def test_one_seed_is_paired_with_every_seed_of_the_other_side():
    base = [Unit(f"p{i}", "turn 1", 1.0) for i in range(10)]
    tuned = [Unit(f"p{i}", "turn 1", 2.0 + 0.1 * s, str(s)) for i in range(10) for s in range(3)]
    found = paired_difference(tuned, base)
    assert (found.n, found.clusters, found.seeds) == (30, 10, 3)
    assert found.value == pytest.approx(1.1)
    assert paired_difference(base, tuned).value == pytest.approx(-1.1)


def test_ambiguous_pairs_are_refused():
    rows = [Unit("p", "turn 1", 1.0), Unit("p", "turn 1", 2.0)]
    with pytest.raises(ValueError, match="ambiguous"):
        paired_difference(rows, rows)


def test_degenerate_cases():
    assert mean_interval([]) is None
    single = mean_interval([Unit("p", "turn 1", 3.0)])
    assert (single.value, single.low, single.high, single.method) == (3.0, None, None, "none")
    assert not single.resolved
    flat = mean_interval(Unit(f"p{i}", "t", 4.0) for i in range(50))
    assert (flat.low, flat.high) == (4.0, 4.0)
    few = mean_interval(Unit(f"p{i}", "t", 1.0) for i in range(5))
    assert not few.resolved, "five prompts cannot show anything at 5 %"


def test_a_share_of_zero_or_one_keeps_an_interval():
    none_right = mean_interval((Unit(f"p{i}", "t", 0.0) for i in range(100)), scale=(0.0, 1.0))
    all_right = mean_interval((Unit(f"p{i}", "t", 1.0) for i in range(100)), scale=(0.0, 1.0))
    assert none_right.low == 0
    assert 0.03 < none_right.high < 0.04
    assert all_right.low == pytest.approx(1 - none_right.high)


def test_few_prompts_get_the_wider_interval():
    rng = random.Random(5)
    rows = simulated(rng, MIN_BOOTSTRAP_CLUSTERS - 1)
    assert mean_interval(rows).method == "clustered-t"


@given(st.lists(st.none() | st.floats(1, 10), min_size=1), st.integers(0, 5))
def test_bounds_hold_the_mean_and_grow_with_failures(scores, more):
    low, high = fill_bounds(scores, 1, 10)
    known = [s for s in scores if s is not None]
    if known:
        assert low - 1e-9 <= math.fsum(known) / len(known) <= high + 1e-9
    failed = len(scores) - len(known)
    assert high - low == pytest.approx(9 * failed / len(scores))
    wider = fill_bounds([*scores, *[None] * more], 1, 10)
    assert wider[0] <= low + 1e-9
    assert wider[1] >= high - 1e-9


def test_an_interval_stays_on_its_scale():
    rows = [Unit(f"p{i}", "t", v) for i, v in enumerate([1.0, 1.0, 1.0, 4.0])]
    assert mean_interval(rows).low < 1
    assert mean_interval(rows, scale=(1.0, 10.0)).low == 1
    worst = mean_interval([Unit(f"p{i}", "t", 1.0) for i in range(40)], scale=(1.0, 10.0))
    assert (worst.low, worst.method) == (1.0, "wilson")
    assert 1.7 < worst.high < 1.9
