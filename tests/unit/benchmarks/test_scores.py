import random

import pytest

from zephyrctl.benchmarks.scores import ALL, difference, games, graded, score, select, units
from zephyrctl.records import Verdict


def verdict(prompt, value, suite="judged", turn=1, order="", decoding="greedy", **more):
    body = {
        "suite": suite,
        "decoding": decoding,
        "prompt_id": prompt,
        "turn": turn,
        "family": "sort",
        "question": "q",
        "answer": "a",
        "score": value,
        "judge": "sandbox:judge",
        "order": order,
        "critique": "c",
    }
    return Verdict(**(body | more))


def many(values, **more):
    return [verdict(f"p{i}", value, **more) for i, value in enumerate(values)]


def test_failed_rows_stand_beside_the_score_with_bounds():
    found = score(many([5.0] * 8 + [None] * 2), (1.0, 10.0))
    assert (found.estimate.value, found.estimate.n, found.failed) == (5.0, 8, 2)
    assert (found.worst, found.best) == pytest.approx((4.2, 6.0))
    assert found.name == "judged[sandbox:judge] greedy"


def test_all_failed_is_no_score_and_says_so():
    found = score(many([None] * 3), (1.0, 10.0))
    assert found.estimate is None
    assert (found.failed, found.worst, found.best) == (3, 1.0, 10.0)
    assert found.as_dict()["estimate"] is None


def test_one_order_alone_does_not_count():
    rows = [
        verdict("p0", 1.0, "win_rate", order="AB"),
        verdict("p0", 0.5, "win_rate", order="BA"),
        verdict("p1", 1.0, "win_rate", order="AB"),
        verdict("p1", None, "win_rate", order="BA"),
        verdict("p2", 1.0, "win_rate", order="BA"),
    ]
    assert graded(rows) == {("p0", 1): 0.75, ("p1", 1): None, ("p2", 1): None}
    found = score(rows, (0.0, 1.0))
    assert (found.estimate.value, found.failed) == (0.75, 2)


def test_a_row_given_twice_is_refused():
    with pytest.raises(ValueError, match="two judged verdicts"):
        graded([verdict("p", 1.0), verdict("p", 2.0)])


def test_suites_decodings_and_judges_do_not_mix():
    for other in (
        verdict("p1", 1.0, "exact"),
        verdict("p1", 1.0, decoding="sampled"),
        verdict("p1", 1.0, judge="openai:gpt-4"),
    ):
        with pytest.raises(ValueError, match="cannot mix"):
            score([verdict("p0", 1.0), other], (1.0, 10.0))


def test_parts():
    rows = [verdict("p0", 1.0), verdict("p0", 2.0, turn=2), verdict("p1", 3.0), verdict("p2", 9.0, "exact")]
    assert [r.score for r in select(rows, "judged", "greedy", ALL)] == [1.0, 2.0, 3.0]
    assert [r.score for r in select(rows, "judged", "greedy", "turn 1")] == [1.0, 3.0]
    assert [r.score for r in select(rows, "judged", "greedy", "last turn")] == [2.0, 3.0]
    assert score(select(rows, "judged", "greedy", "turn 2"), (1.0, 10.0), "turn 2").name.endswith(", turn 2")
    assert score([], (0.0, 1.0)) is None


def test_pairing_is_by_prompt_and_turn_whatever_the_order_of_rows():
    rng = random.Random(4)
    easy = [rng.uniform(1, 9) for _ in range(60)]
    ours, theirs = many([v + 0.5 for v in easy]), many(easy)
    rng.shuffle(ours)
    found = difference(ours, theirs)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.resolved
    shifted = difference(ours, [r for r in theirs if r.prompt_id != "p3"])
    assert shifted.n == 59


def test_units_leave_failures_out_and_carry_the_training_seed():
    assert [(u.prompt, u.key, u.seed) for u in units(many([1.0, None]), seed="2")] == [("p0", "turn 1", "2")]


def test_games_know_length_and_whether_a_judge_was_asked():
    def row(prompt, order, **more):
        return verdict(prompt, 0.5, "win_rate", order=order, **more)

    long_one = {"answer": "a long answer", "reference": "short"}
    rows = [row("p0", "AB", **long_one), row("p0", "BA", **long_one)]
    rows += [row("p1", "AB", reference="b", critique=None), row("p1", "BA", reference="b", critique=None)]
    first, second = games([*rows, verdict("p9", 5.0)])
    assert (first.longer, first.asked, first.score) == (True, True, 0.5)
    assert (second.longer, second.asked) == (None, False)
