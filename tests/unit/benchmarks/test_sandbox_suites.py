import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.benchmarks.base import Item, Reply, Transcript
from zephyrctl.benchmarks.sandbox import (
    EMPTY,
    IDENTICAL,
    ExactSuite,
    JudgedSuite,
    WinRateSuite,
    sandbox_items,
    sandbox_suites,
)
from zephyrctl.quote import read_blocks
from zephyrctl.sandbox import world

ONE = Item("sort", ("Sort these words: pear fig",))
JUDGE = "sandbox:judge"


def transcript(*answers, item=ONE, decoding="greedy"):
    return Transcript(item, decoding, tuple(Reply(a, None if a is not None else "lost") for a in answers))


def two_turns():
    return next(item for item in sandbox_items(100, 1) if len(item.turns) == 2)


def test_items_are_eval_prompts_and_the_first_of_more_are_those_of_fewer():
    few, many = sandbox_items(20, 5), sandbox_items(60, 5)
    assert many[:20] == few
    assert all(world.is_eval(item.turns) for item in many)
    assert len({item.prompt_id for item in many}) == 60
    assert {item.family for item in many} == set(world.families())


def test_every_suite_asks_the_same_prompts():
    asked = [suite.items(12, 3) for suite in sandbox_suites()]
    assert asked[0] == asked[1] == asked[2]


def test_a_later_turn_is_judged_after_the_models_own_answer():
    item = two_turns()
    first, second = JudgedSuite().gradings(transcript("one", "two", item=item), None, JUDGE)
    assert read_blocks(first.request) == {"USER 1": item.turns[0], "ANSWER": "one"}
    assert read_blocks(second.request) == {
        "USER 1": item.turns[0],
        "ASSISTANT 1": "one",
        "USER 2": item.turns[1],
        "ANSWER": "two",
    }
    assert (first.verdict.turn, second.verdict.turn) == (1, 2)


def test_silence_gets_the_worst_mark_unasked_and_a_missing_answer_fails():
    suite = JudgedSuite()
    (empty,) = suite.gradings(transcript("  "), None, JUDGE)
    assert (empty.request, empty.verdict.score, empty.verdict.reason) == (None, 1.0, EMPTY)
    (lost,) = suite.gradings(transcript(None), None, JUDGE)
    assert (lost.request, lost.verdict.score, lost.verdict.reason) == (None, None, "no answer: lost")


@pytest.mark.parametrize(
    ("reply", "score"),
    [("Fine.\n\nRating: [[7]]", 7.0), ("Rating: [[11]]", None), ("", None), ("Rating: 7", None)],
)
def test_a_grade_is_read_or_missing_never_a_default(reply, score):
    suite = JudgedSuite()
    (grading,) = suite.gradings(transcript("fig pear"), None, JUDGE)
    verdict = suite.read(grading, reply)
    assert verdict.score == score
    assert (verdict.reason is None) == (score is not None)


def test_a_win_rate_shows_both_orders_and_scores_the_model():
    suite = WinRateSuite()
    forward, backward = suite.gradings(transcript("fig pear"), transcript("pear fig"), JUDGE)
    assert read_blocks(forward.request)["ANSWER A"] == "fig pear"
    assert read_blocks(backward.request)["ANSWER A"] == "pear fig"
    assert suite.read(forward, "Verdict: [[A]]").score == 1
    assert suite.read(backward, "Verdict: [[A]]").score == 0
    assert suite.read(backward, "Verdict: [[B]]").score == 1
    assert suite.read(forward, "Verdict: [[C]]").score == 0.5
    assert suite.read(forward, "who knows").score is None


def test_equal_answers_tie_and_an_empty_one_loses_unasked():
    suite = WinRateSuite()
    for ours, theirs, score, reason in (
        ("fig", "fig", 0.5, IDENTICAL),
        ("", "fig", 0.0, EMPTY),
        ("fig", " ", 1.0, EMPTY),
        ("", "  ", 0.5, EMPTY),
    ):
        for grading in suite.gradings(transcript(ours), transcript(theirs), JUDGE):
            assert grading.request is None
            assert (grading.verdict.score, grading.verdict.reason) == (score, reason)


def test_a_missing_answer_on_either_side_fails_the_pair():
    suite = WinRateSuite()
    for ours, theirs in ((None, "fig"), ("fig", None), (None, None)):
        for grading in suite.gradings(transcript(ours), transcript(theirs), JUDGE):
            assert grading.request is None
            assert grading.verdict.score is None
            assert "no answer" in grading.verdict.reason
    with pytest.raises(ValueError, match="baseline"):
        suite.gradings(transcript("fig"), None, JUDGE)


@settings(max_examples=40)
@given(st.integers(0, 200), st.randoms())
def test_exact_agrees_with_the_world(place, rng):
    item = sandbox_items(100, 2)[place % 100]
    right = [world.solve(item.turns[: n + 1]) for n in range(len(item.turns))]
    wrong = [world.wrong_answer(item.turns[: n + 1], random.Random(place)) for n in range(len(item.turns))]
    suite = ExactSuite()
    assert [g.verdict.score for g in suite.gradings(transcript(*right, item=item), None, JUDGE)] == [
        1.0
    ] * len(right)
    assert [g.verdict.score for g in suite.gradings(transcript(*wrong, item=item), None, JUDGE)] == [
        0.0
    ] * len(wrong)
    assert all(g.verdict.judge == "exact" for g in suite.gradings(transcript(*right, item=item), None, JUDGE))
