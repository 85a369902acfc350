"""Which number ranks a completion: missing ratings are missing, and the known defect of 10 for 1 is no aspect."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.stages.binarize.candidates import Candidate, candidate
from zephyrctl.stages.binarize.scores import mended, parse_score, ratings_wanted, score_of

Marks = dict[str, float | None]


def rated(overall: float | None = None, note: str | None = None, **aspects: float | None) -> Candidate:
    return Candidate(
        "id", "m", "t", overall, note, [(a, v, None if v is not None else "n/a") for a, v in aspects.items()]
    )


def test_not_applicable_is_left_out_of_the_mean_and_counted() -> None:
    one = rated(3, honesty=None, helpfulness=5)
    assert score_of(one, "mean", {}) == 5.0
    assert score_of(one, "aspect:honesty", {}) is None
    assert score_of(one, "aspect:helpfulness", {}) == 5.0
    assert score_of(one, "aspect:wit", {}) is None
    assert ratings_wanted([one, one], "mean", {}) == (2, {"not applicable": 2})
    assert ratings_wanted([rated()], "overall", {}) == (0, {"unparsed": 1})
    assert ratings_wanted([one], "aspect:wit", {}) == (0, {"absent": 1})
    assert score_of(rated(3), "mean", {}) is None


def test_missing_aspects_leave_their_weight_to_the_others() -> None:
    weights = {"helpfulness": 2.0, "honesty": 1.0, "wit": 5.0}
    one = rated(helpfulness=5, honesty=2, truthfulness=1)
    assert score_of(one, "weighted", weights) == (2 * 5 + 2) / 3
    assert ratings_wanted([one], "weighted", weights) == (2, {"absent": 1})
    assert score_of(rated(helpfulness=4, honesty=None), "weighted", weights) == 4.0
    assert score_of(rated(truthfulness=4), "weighted", weights) is None


VALUES = st.dictionaries(st.sampled_from("abcd"), st.none() | st.floats(1, 5), max_size=4)


@given(VALUES, st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 10), min_size=1))
def test_a_weighted_score_lies_among_its_ratings_and_knows_no_scale_of_weights(
    marks: Marks, weights: dict[str, float]
) -> None:
    one = rated(**marks)
    values = [v for a, v in marks.items() if v is not None and a in weights]
    score = score_of(one, "weighted", weights)
    assert (score is None) == (not values)
    if score is not None:
        assert min(values) - 1e-9 <= score <= max(values) + 1e-9
        assert score_of(one, "weighted", {a: 3 * w for a, w in weights.items()}) == pytest.approx(score)


@given(VALUES)
def test_equal_weights_are_the_mean(marks: Marks) -> None:
    one = rated(**marks)
    mean = score_of(one, "mean", {})
    assert score_of(one, "weighted", dict.fromkeys("abcd", 1.0)) == (
        mean if mean is None else pytest.approx(mean)
    )


def test_what_was_noted_about_an_overall_score_is_no_rating_of_an_aspect() -> None:
    one = candidate("id", "m", "t", 1.0, [("wit", 4.0, None), ("overall", None, "10 for 1")])
    assert (one.note, one.ratings) == ("10 for 1", [("wit", 4.0, None)])
    assert mended(one)
    assert score_of(one, "mean", {}) == 4.0
    assert ratings_wanted([one], "mean", {}) == (1, {})
    other = candidate("id", "m", "t", None, [("overall", None, "10 or 1")])
    assert not mended(other)
    assert ratings_wanted([other], "overall", {}) == (0, {"10 or 1": 1})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers_are_scores(value: float) -> None:
    assert score_of(rated(value), "overall", {}) is None
    assert score_of(rated(wit=value), "mean", {}) is None


def test_scores_have_a_grammar() -> None:
    assert parse_score("aspect:wit") == "aspect:wit"
    for text in ("", "best", "aspect:", "weights"):
        with pytest.raises(ValueError, match="weighted or aspect:NAME"):
            parse_score(text)
