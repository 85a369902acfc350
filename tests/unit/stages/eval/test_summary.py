import json

from zephyrctl.benchmarks.sandbox import sandbox_suites
from zephyrctl.records import Verdict
from zephyrctl.stages.eval import summary

SUITES = sandbox_suites()


def rows(shift=0.0, failed=0):
    made = []
    for place in range(40):
        for turn in (1, 2) if place % 4 == 0 else (1,):
            body = {
                "decoding": "greedy",
                "prompt_id": f"p{place}",
                "turn": turn,
                "family": "sort",
                "question": "q",
                "answer": "a" * (1 + place % 7),
            }
            mark = None if place < failed else 2.0 + shift + place % 5
            judge = {"judge": "sandbox:judge", "critique": "c"}
            reason = "judge: no line 'Rating:'" if mark is None else None
            made.append(Verdict(**body, **judge, suite="judged", score=mark, reason=reason))
            made.append(Verdict(**body, suite="exact", judge="exact", score=float(place % 2)))
            if turn == 1:
                for order in ("AB", "BA"):
                    duel = {"suite": "win_rate", "order": order, "reference": "aaa"}
                    made.append(Verdict(**body, **judge, **duel, score=1.0 if order == "AB" else 0.5))
    return made


def test_every_suite_has_a_whole_score_and_its_turns():
    found = {s.name: s for s in summary.scores(rows(), rows(), SUITES, ["greedy"])}
    assert set(found) == {
        "judged[sandbox:judge] greedy",
        "judged[sandbox:judge] greedy, turn 1",
        "judged[sandbox:judge] greedy, turn 2",
        "judged[sandbox:judge] greedy, last turn",
        "win_rate[sandbox:judge] greedy",
        "exact greedy",
        "exact greedy, turn 1",
        "exact greedy, turn 2",
        "exact greedy, last turn",
    }
    assert found["judged[sandbox:judge] greedy"].estimate.n == 50
    assert found["judged[sandbox:judge] greedy, turn 2"].estimate.n == 10


def test_differences_are_paired_with_the_baseline():
    found = {s.name: s for s in summary.scores(rows(0.5), rows(), SUITES, ["greedy"])}
    judged = found["judged[sandbox:judge] greedy"].difference
    assert (judged.value, judged.low, judged.high) == (0.5, 0.5, 0.5)
    duel = found["win_rate[sandbox:judge] greedy"]
    assert duel.estimate.value == 0.75
    assert duel.difference.value == 0.25
    assert not found["exact greedy"].difference.resolved
    assert all(s.difference is None for s in summary.scores(rows(), None, SUITES, ["greedy"]))


def test_the_document_is_json_and_says_what_failed():
    made = rows(failed=4)
    found = summary.scores(made, rows(), SUITES, ["greedy"])
    first = json.loads(json.dumps(found[0].as_dict(), allow_nan=False))
    assert first["name"] == "judged[sandbox:judge] greedy"
    assert first["failed"] == 5
    assert first["worst"] < first["estimate"]["value"] < first["best"]
    counted = summary.counts(made, cut=3)
    assert (counted["prompts"], counted["failed"], counted["answers_cut"]) == (40, 5, 3)
    assert counted["failed_by_reason"] == {"judged: judge: no line 'Rating:'": 5}


def test_the_table_shows_whole_suites_and_the_headline_the_main_ones():
    made = rows()
    made += [row.model_copy(update={"decoding": "sampled"}) for row in made]
    found = summary.scores(made, None, SUITES, ["greedy", "sampled"])
    assert summary.headline(found) == {
        "judged[sandbox:judge] sampled": 4.0,
        "win_rate[sandbox:judge] sampled": 0.75,
        "exact greedy": 0.4,
        "exact sampled": 0.4,
    }
    shown = summary.table(found, "t")
    assert len(shown.rows) == 6
    assert all(len(row) == len(shown.columns) for row in shown.rows)
    assert all("turn" not in row[0] for row in shown.rows)


def test_biases_of_the_judge():
    found = summary.biases(rows(), SUITES)
    assert found["win_rate"]["first_shown_preferred"]["value"] == 0.75
    assert found["win_rate"]["flip_rate"]["value"] == 1.0
    assert set(found["judged"]) == {"length_correlation", "length_correlation_right"}
    assert -1 <= found["judged"]["length_correlation"] <= 1
    assert "exact" not in found
