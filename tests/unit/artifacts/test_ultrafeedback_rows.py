"""UltraFeedback's own rows: what is missing stays missing, and a 10 that was a 1 is seen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.artifacts.ultrafeedback import ASPECTS, mend_overall, ultrafeedback_row
from zephyrctl.records import Completion, prompt_id


def annotation(rating: Any, **more: Any) -> dict[str, Any]:
    return {"Rating": rating, "Rationale": "because", **more}


def completion(
    model: str = "alpaca-7b", overall: Any = 7.5, rating: Any = "4", **changes: Any
) -> dict[str, Any]:
    annotations = {aspect: annotation(rating) for aspect in ASPECTS}
    return {
        "model": model,
        "principle": "helpfulness",
        "custom_system_prompt": "Be of use.",
        "response": f"answer of {model}",
        "critique": "Fine.",
        "overall_score": overall,
        "fine-grained_score": 4.0,
        "annotations": annotations,
        **changes,
    }


def raw(*completions: dict[str, Any]) -> dict[str, Any]:
    return {
        "source": "evol_instruct",
        "instruction": "Name a fruit.",
        "models": [c["model"] for c in completions],
        "completions": list(completions),
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


def only(found: dict[str, Any]) -> Completion:
    return ultrafeedback_row(raw(found)).completions[0]


def test_a_row_as_it_is_published() -> None:
    row = ultrafeedback_row(raw(completion(), completion("gpt-4", 9)))
    assert (row.source, row.judge, row.prompt[0].content) == ("evol_instruct", "gpt-4", "Name a fruit.")
    assert row.prompt_id == prompt_id(row.prompt)
    one, two = row.completions
    assert (one.model, one.text, one.overall, one.critique) == (
        "alpaca-7b",
        "answer of alpaca-7b",
        7.5,
        "Fine.",
    )
    assert (one.principle, two.overall) == ("helpfulness", 9.0)
    assert [(r.aspect, r.value, r.rationale) for r in one.ratings] == [(a, 4.0, "because") for a in ASPECTS]
    assert one.completion_id != two.completion_id


@pytest.mark.parametrize(
    ("overall", "mean", "expected"),
    [
        (10, 2.0, (1.0, "10 for 1")),
        (10, 1.0, (1.0, "10 for 1")),
        (10, 2.25, (None, "10 or 1")),
        (10, 4.0, (None, "10 or 1")),
        (10, None, (None, "10 or 1")),
        (10, 4.25, (10, None)),
        (9.5, 1.0, (9.5, None)),
        (1, 1.0, (1, None)),
        (None, 1.0, (None, None)),
    ],
)
def test_the_rule_of_ten_for_one(
    overall: float | None, mean: float | None, expected: tuple[Any, Any]
) -> None:
    assert mend_overall(overall, mean) == expected


def test_what_was_done_with_a_ten_is_kept_and_is_no_rating() -> None:
    found = only(completion(overall=10, rating="1"))
    assert (found.overall, found.critique) == (1.0, "Fine.")
    assert [(r.aspect, r.value, r.reason) for r in found.ratings][-1] == ("overall", None, "10 for 1")
    unsure = only(completion(overall=10, rating="3"))
    assert (unsure.overall, unsure.ratings[-1].reason) == (None, "10 or 1")
    assert len(only(completion(overall=10, rating="5")).ratings) == len(ASPECTS)


def test_the_stored_mean_counts_only_where_no_aspect_was_rated() -> None:
    bare = completion(overall=10, annotations={})
    assert only(bare | {"fine-grained_score": 1.5}).overall == 1.0
    assert only(bare | {"fine-grained_score": 4.5}).overall == 10.0
    assert only(bare | {"fine-grained_score": None}).overall is None
    assert only(completion(overall=10, rating="5") | {"fine-grained_score": 1.5}).overall == 10.0


@pytest.mark.parametrize(
    ("rating", "value", "reason"),
    [
        ("5", 5.0, None),
        (3, 3.0, None),
        ("N/A", None, "n/a"),
        (None, None, "missing"),
        ("", None, "missing"),
        ("0", None, "not 1-5: '0'"),
        ("6", None, "not 1-5: '6'"),
        ("-1", None, "not 1-5: '-1'"),
        ("4 of 5", None, "not 1-5: '4 of 5'"),
        (True, None, "not 1-5: 'True'"),
    ],
)
def test_a_rating_is_a_number_from_1_to_5_or_missing(
    rating: Any, value: float | None, reason: str | None
) -> None:
    found = only(completion(rating=rating)).ratings[0]
    assert (found.value, found.reason) == (value, reason)


def test_absent_annotations_are_missing_and_lists_of_one_are_read() -> None:
    found = completion()
    found["annotations"] = {
        "honesty": [],
        "truthfulness": [annotation("2", Type=["1", "3"], **{"Rationale For Rating": "wrong"})],
        "helpfulness": annotation("5", Type="1, 2, None"),
    }
    by_aspect = {r.aspect: r for r in only(found).ratings}
    assert (by_aspect["honesty"].reason, by_aspect["instruction_following"].reason) == ("missing", "missing")
    assert (by_aspect["truthfulness"].types, by_aspect["truthfulness"].rationale) == ([1, 3], "wrong")
    assert by_aspect["helpfulness"].types == [1, 2]


def test_empty_answers_are_kept_to_be_counted() -> None:
    for response in (None, "", "  "):
        found = only(completion(response=response))
        assert (found.text.strip(), found.finish_reason) == ("", "empty")


def test_two_answers_of_one_model_are_two_completions() -> None:
    row = ultrafeedback_row(raw(completion(), completion()))
    assert [c.draw for c in row.completions] == [0, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"instruction": " "},
        {"instruction": None},
        {"completions": None},
        {"completions": "x"},
        {"completions": [1]},
    ],
)
def test_what_is_no_row_of_it_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"instruction|completions"):
        ultrafeedback_row(raw(completion()) | change)
    with pytest.raises(ValueError, match="which model"):
        ultrafeedback_row(raw(completion("")))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["Rating", "Type", "x"]), inner)
    ),
    max_leaves=5,
)


@given(st.sampled_from(sorted(completion())), ANYTHING)
def test_an_odd_field_never_makes_a_number_up(name: str, value: Any) -> None:
    row = raw(copy.deepcopy(completion("a", 10, "3")) | {name: value})
    try:
        found = ultrafeedback_row(row).completions[0]
    except ValueError:
        return
    assert found.overall is None or 1 <= found.overall <= 10
    assert all(r.value is None or 1 <= r.value <= 5 for r in found.ratings)
