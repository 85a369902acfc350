import random

import pytest

from zephyrctl.benchmarks.statistics import Estimate
from zephyrctl.recipes import table3
from zephyrctl.records import Verdict

PROMPTS = 40


def rows(level, rng, exact_rate=0.5):
    made = []
    for place in range(PROMPTS):
        shared = {"prompt_id": f"p{place}", "turn": 1, "family": "sort", "question": "q", "answer": "a"}
        for decoding in ("greedy", "sampled"):
            grade = min(10.0, max(1.0, level + place % 5 + rng.gauss(0, 0.3)))
            judged = {"suite": "judged", "judge": "j", "critique": "c"}
            made.append(Verdict(**shared, **judged, decoding=decoding, score=grade))
            right = float(rng.random() < exact_rate)
            made.append(Verdict(**shared, suite="exact", judge="exact", decoding=decoding, score=right))
            for order in ("AB", "BA"):
                duel = {"suite": "win_rate", "judge": "j", "order": order, "reference": "b", "critique": "c"}
                made.append(Verdict(**shared, **duel, decoding=decoding, score=0.5))
    return made


@pytest.fixture
def systems():
    rng = random.Random(0)
    return {
        table3.DPO_ON_SFT: [rows(4.0, rng) for _ in range(3)],
        table3.DSFT_1: [rows(3.0, rng) for _ in range(3)],
        table3.DSFT_2: [rows(3.0, rng) for _ in range(3)],
        table3.DPO_ONLY: [rows(1.0, rng) for _ in range(3)],
        table3.BASE: [rows(1.0, rng)],
    }


def test_rows_stand_in_the_papers_order_with_the_base_above(systems):
    cells = table3.cells(systems)
    assert list(cells) == ["base", "dDPO - dSFT", "dSFT-1", "dSFT-2", "dDPO + dSFT"]
    shown = table3.table(cells, "sandbox:judge")
    assert [row[0] for row in shown.rows] == list(cells)
    assert "not language models" in shown.title
    assert "sandbox:judge" in shown.title
    assert all(len(row) == len(shown.columns) for row in shown.rows)


def test_comparisons_are_paired_over_prompts_and_seeds(systems):
    found = {(c.one, c.other, c.column): c for c in table3.compare(systems)}
    better = found[table3.DPO_ON_SFT, table3.DSFT_1, table3.JUDGED]
    assert (better.estimate.clusters, better.estimate.seeds, better.estimate.n) == (40, 3, 120)
    assert 0.8 < better.estimate.value < 1.2
    text = table3.sentence(better)
    assert text.startswith("dDPO + dSFT beats dSFT-1 on judged score by 0.99 [")
    assert text.endswith("paired over 40 prompts x 3 training seeds: resolved.")
    assert found[table3.DSFT_1, table3.BASE, table3.JUDGED].estimate.seeds == 3
    assert "not resolved" in table3.sentence(found[table3.DSFT_2, table3.DSFT_1, table3.JUDGED])


def test_systems_that_are_missing_are_left_out(systems):
    some = {name: systems[name] for name in (table3.BASE, table3.DSFT_1)}
    assert list(table3.cells(some)) == [table3.BASE, table3.DSFT_1]
    assert {(c.one, c.other) for c in table3.compare(some)} == {(table3.DSFT_1, table3.BASE)}


@pytest.mark.parametrize(
    ("value", "low", "high", "clusters", "expected"),
    [
        (
            -0.4,
            -0.6,
            -0.2,
            50,
            "a is behind b on judged score by 0.40 [0.20, 0.60], paired over 50 prompts: resolved.",
        ),
        (
            0.1,
            -0.2,
            0.4,
            50,
            "a and b differ on judged score by +0.10 [-0.20, +0.40], paired over 50 prompts: not resolved.",
        ),
        (
            1.0,
            0.9,
            1.1,
            4,
            "a and b differ on judged score by +1.00 [+0.90, +1.10], paired over 4 prompts: not resolved.",
        ),
        (
            1.0,
            None,
            None,
            1,
            "a and b differ on judged score by +1.00, paired over 1 prompts: too few to tell.",
        ),
    ],
)
def test_sentences(value, low, high, clusters, expected):
    found = Estimate(value, low, high, clusters, clusters, 1, "bootstrap")
    assert table3.sentence(table3.Comparison("a", "b", table3.JUDGED, found)) == expected


def test_nothing_in_common_is_said():
    assert "no prompt in common" in table3.sentence(table3.Comparison("a", "b", table3.JUDGED, None))
