"""The counts add up, and the lengths are what a plain computation gives."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.stages.binarize.barred import Barred
from zephyrctl.stages.binarize.candidates import Asked, Candidate
from zephyrctl.stages.binarize.select import Policy, select
from zephyrctl.stages.binarize.tally import Funnel, Lengths

SIZES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=30)


@given(SIZES)
def test_lengths_are_those_of_a_plain_computation(sizes: list[tuple[int, int]]) -> None:
    lengths = Lengths()
    for pair in sizes:
        lengths.add(*pair)
    found = lengths.summary()
    for side, values in zip(("chosen", "rejected"), zip(*sizes, strict=True), strict=True):
        assert found[side] == {
            "mean": round(statistics.fmean(values), 1),
            "median": statistics.median(values),
        }
    assert found["chosen_longer"] == round(sum(a > b for a, b in sizes) / len(sizes), 4)
    assert found["equal"] == round(sum(a == b for a, b in sizes) / len(sizes), 4)


COMPLETIONS = st.lists(
    st.tuples(st.none() | st.integers(1, 5), st.sampled_from(["a", "bb", "c c", ""]), st.booleans()),
    max_size=5,
)


@given(st.lists(COMPLETIONS, max_size=8), st.sampled_from(["random", "all-pairs"]))
def test_the_counts_add_up(rows: list[list[tuple[int | None, str, bool]]], rule: str) -> None:
    funnel, longer = Funnel(), 0.0
    flagged = {f"{n}-{m}" for n, row in enumerate(rows) for m, (_, _, flag) in enumerate(row) if flag}
    barred = Barred(ids=frozenset(flagged), sources=frozenset({"s0"}))
    for n, row in enumerate(rows):
        candidates = [
            Candidate(f"{n}-{m}", f"m{m}", text, score, None, []) for m, (score, text, _) in enumerate(row)
        ]
        asked = Asked(f"p{n}", f"s{n % 3}", "q", candidates)
        outcome = select(asked, Policy(rejected=rule), barred)
        funnel.add(asked, outcome)
        for pair in outcome.pairs:
            a, b = len(candidates[pair.chosen].text), len(candidates[pair.rejected].text)
            longer += 1 if a > b else 0.5 if a == b else 0
    counts = funnel.as_counts()
    assert counts["prompts"] == len(rows) == counts["prompts_paired"] + sum(counts["dropped"].values())
    parts = ("scored", "unscored", "empty", "flagged", "barred")
    assert (
        counts["completions"] == sum(map(len, rows)) == sum(counts[f"completions_{part}"] for part in parts)
    )
    assert counts["ratings"] + sum(counts["ratings_missing"].values()) == (
        counts["completions_scored"] + counts["completions_unscored"]
    )
    models = funnel.as_profile()["models"]
    assert (
        counts["pairs"]
        == sum(m["chosen"] for m in models.values())
        == sum(m["rejected"] for m in models.values())
    )
    assert counts["pairs"] >= counts["prompts_paired"]
    assert funnel.longer_agrees() == longer / max(1, counts["pairs"])
    assert {table.title for table in funnel.tables("overall")} == {
        "from feedback to pairs",
        "lengths",
        "by model",
    }
