"""The order shown: Latin squares over the aspects, whatever the order of the pool."""

import random
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.judges.ultrafeedback import ASPECTS
from zephyrctl.stages.gen_prefs.orders import latin_order, latin_square, reduced_squares

IDS = st.lists(st.text("0123456789abcdef", min_size=1, max_size=6), unique=True, min_size=1, max_size=9)


def places(orders: dict[str, list[str]]) -> dict[str, Counter[int]]:
    """For each text how often it stands in which place."""
    found: dict[str, Counter[int]] = {}
    for order in orders.values():
        for place, identity in enumerate(order):
            found.setdefault(identity, Counter())[place] += 1
    return found


@given(
    st.lists(st.text("abcdef", min_size=1, max_size=6), unique=True, min_size=4, max_size=4), st.integers()
)
def test_four_texts_stand_in_every_place_once_over_four_aspects(ids: list[str], seed: int) -> None:
    orders = latin_order(ids, ASPECTS, seed, "p")
    assert list(orders) == list(ASPECTS)
    for counts in places(orders).values():
        assert counts == {0: 1, 1: 1, 2: 1, 3: 1}


@given(IDS, st.integers(1, 12), st.integers(0, 2**40), st.text(max_size=5))
def test_places_are_as_even_as_they_can_be(ids: list[str], aspects: int, seed: int, prompt_id: str) -> None:
    names = [f"a{n}" for n in range(aspects)]
    orders = latin_order(ids, names, seed, prompt_id)
    assert all(sorted(order) == sorted(ids) for order in orders.values())
    for counts in places(orders).values():
        seen = [counts[place] for place in range(len(ids))]
        assert max(seen) - min(seen) <= 1


@given(IDS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_order_of_the_pool_does_not_matter(ids: list[str], aspects: int, random: random.Random) -> None:
    names = ASPECTS[:aspects]
    mixed = random.sample(ids, len(ids))
    assert latin_order(mixed, names, 42, "p") == latin_order(ids, names, 42, "p")


def test_seed_and_prompt_decide() -> None:
    ids = ["a", "b", "c", "d"]
    assert latin_order(ids, ASPECTS, 1, "p") == latin_order(ids, ASPECTS, 1, "p")
    drawn = {str(latin_order(ids, ASPECTS, seed, f"p{n}")) for seed in range(10) for n in range(10)}
    assert len(drawn) > 80


def test_there_are_as_many_reduced_squares_as_the_literature_says() -> None:
    assert [len(reduced_squares(n)) for n in (1, 2, 3, 4, 5)] == [1, 1, 1, 4, 56]
    for square in reduced_squares(4):
        assert all(sorted(row) == [0, 1, 2, 3] for row in (*square, *zip(*square, strict=True)))


def test_all_576_squares_of_size_four_are_drawn_equally_often() -> None:
    rng = random.Random(7)
    drawn = Counter(latin_square(4, rng) for _ in range(576 * 40))
    assert len(drawn) == 576
    chi = sum((n - 40) ** 2 / 40 for n in drawn.values())
    assert chi < 740  # 575 degrees of freedom: above 740 in one of 2·10^6 fair draws


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7])
def test_every_text_has_equal_chances_in_every_place_of_every_row(n: int) -> None:
    rng = random.Random(n)
    squares = [latin_square(n, rng) for _ in range(3000)]
    for row in (0, n - 1):
        for place in range(n):
            seen = Counter(square[row][place] for square in squares)
            assert all(abs(seen[text] - 3000 / n) < 5 * (3000 / n) ** 0.5 for text in range(n))


def test_three_texts_over_four_aspects_have_no_aspect_of_their_own() -> None:
    """The fourth row is drawn anew: it repeats each of the others now and then."""
    ids = ["a", "b", "c"]
    repeats: Counter[int] = Counter()
    for seed in range(200):
        orders = list(latin_order(ids, ASPECTS, seed, "p").values())
        assert sorted(zip(*orders[:3], strict=True)) != sorted(permutations(ids))
        repeats.update(i for i in range(3) if orders[i] == orders[3])
    assert set(repeats) == {0, 1, 2}


def test_without_texts_or_aspects_there_is_nothing_to_show() -> None:
    assert latin_order([], ASPECTS, 1, "p") == {aspect: [] for aspect in ASPECTS}
    assert latin_order(["a"], (), 1, "p") == {}
