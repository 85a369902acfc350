"""Chosen and rejected: the paper's rule, ties as decisions, and independence of every order."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.stages.binarize.barred import Barred
from zephyrctl.stages.binarize.candidates import Asked, Candidate
from zephyrctl.stages.binarize.config import BinarizeConfig
from zephyrctl.stages.binarize.select import (
    Outcome,
    Policy,
    normalised,
    parse_rejected,
    parse_ties,
    same_text,
    select,
)


def completion(name: str, score: float | None, text: str | None = None, **aspects: float | None) -> Candidate:
    ratings = [(a, v, None if v is not None else "n/a") for a, v in aspects.items()]
    return Candidate(name, f"m-{name}", text if text is not None else f"text {name}", score, None, ratings)


def row(*completions: Candidate, prompt: str = "Sort: pear fig", source: str = "") -> Asked:
    return Asked(f"id of {prompt}", source, prompt, completions)


TEXTS = ["x", "y", "z", " x\n", "caf\u00e9", "cafe\u0301", ""]
SCORES = st.lists(st.one_of(st.none(), st.integers(1, 10)), min_size=0, max_size=6)
RULES = [("random", None), ("worst", None), ("nearest", None), ("quantile", 0.25), ("quantile", 0.5)]
TIES = st.sampled_from([("drop", None), ("keep", None), ("margin", 1.0), ("margin", 2.5)])
POLICIES = st.builds(
    lambda rule, ties, seed, best: Policy("overall", rule[0], *ties, seed, rule[1], best),
    st.sampled_from(RULES),
    TIES,
    st.integers(0, 50),
    st.sampled_from(["drawn", "first"]),
)


@st.composite
def rows(draw: st.DrawFn) -> Asked:
    scores = draw(SCORES)
    texts = draw(st.lists(st.sampled_from(TEXTS), min_size=len(scores), max_size=len(scores)))
    return row(*(completion(str(i), s, t) for i, (s, t) in enumerate(zip(scores, texts, strict=True))))


def lawful(asked: Asked, policy: Policy) -> list[tuple[int, int]]:
    """Every pair that a policy allows, the chosen one of any rank."""
    least = {"drop": 0.5, "keep": 0.0, "margin": policy.margin}[policy.ties]
    able = [(n, c) for n, c in enumerate(asked.candidates) if c.overall is not None and normalised(c.text)]
    return [
        (n, m)
        for (n, a), (m, b) in itertools.permutations(able, 2)
        if a.overall - b.overall >= least and normalised(a.text) != normalised(b.text)
    ]


@given(rows(), POLICIES)
@settings(max_examples=400)
def test_every_outcome_is_a_lawful_pair_or_a_true_reason(asked: Asked, policy: Policy) -> None:
    out = select(asked, policy)
    everyone = asked.candidates
    able = {n for n, c in enumerate(everyone) if c.overall is not None and normalised(c.text)}
    assert out.empty == sum(not normalised(c.text) for c in everyone)
    assert (out.scored, out.scored + out.unscored + out.empty) == (len(able), len(everyone))
    assert (out.best is None) == (out.reason is not None) == (not out.pairs)
    top = max((everyone[n].overall for n in able), default=0)
    first = next((n for n in sorted(able) if everyone[n].overall == top), None)
    allowed = [
        (a, b)
        for a, b in lawful(asked, policy)
        if everyone[a].overall == top and (policy.best == "drawn" or a == first)
    ]
    if out.best is None:
        assert not allowed
        return
    (pair,) = out.pairs
    assert pair.chosen == out.best
    assert (pair.chosen, pair.rejected) in allowed
    assert (pair.high, pair.low) == (everyone[pair.chosen].overall, everyone[pair.rejected].overall)
    assert pair.tie == (pair.high == pair.low)
    assert not (pair.tie and policy.ties == "drop")
    below = sorted(everyone[b].overall for a, b in allowed if a == pair.chosen)
    if policy.rejected == "worst":
        assert pair.low == below[0]
    elif policy.rejected == "nearest":
        assert pair.low == below[-1]
    elif policy.rejected == "quantile":
        share = policy.quantile
        assert sum(s <= pair.low for s in below) >= share * len(below)
        assert sum(s < pair.low for s in below) < max(share * len(below), 1e-9)


@given(rows(), TIES.filter(lambda ties: ties[0] != "keep"), st.integers(0, 9))
def test_all_pairs_are_all_the_lawful_ones(asked: Asked, ties: tuple[str, float | None], seed: int) -> None:
    policy = Policy("overall", "all-pairs", *ties, seed)
    out = select(asked, policy)
    made = [(p.chosen, p.rejected) for p in out.pairs]
    assert sorted(made) == sorted(lawful(asked, policy))
    assert len(set(made)) == len(made)
    if made:
        top = max(c.overall for c in asked.candidates if c.overall is not None and normalised(c.text))
        assert asked.candidates[out.best].overall == top


@given(rows(), POLICIES.filter(lambda p: p.best == "drawn"), st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_completions_does_not_matter(
    asked: Asked, policy: Policy, order: random.Random, every: bool
) -> None:
    if every and policy.ties != "keep":
        policy = Policy("overall", "all-pairs", policy.ties, policy.margin, policy.seed)
    mixed = list(asked.candidates)
    order.shuffle(mixed)
    assert pairs_by_name(asked._replace(candidates=mixed), policy) == pairs_by_name(asked, policy)


def pairs_by_name(asked: Asked, policy: Policy) -> list[tuple[str, ...]]:
    out = select(asked, policy)
    names = [c.identity for c in asked.candidates]
    return [*((names[p.chosen], names[p.rejected]) for p in out.pairs), (str(out.reason), out.detail)]


def chosen(out: Outcome) -> int:
    (pair,) = out.pairs
    return pair.chosen


def reason(*completions: Candidate, policy: Policy | None = None) -> str | None:
    return select(row(*completions), policy or Policy()).reason


def test_the_reasons() -> None:
    a, b, c = completion("a", 7), completion("b", 7), completion("c", None)
    assert reason(a) == "single_completion"
    assert reason() == "single_completion"
    assert reason(a, c) == "unscored"
    assert reason(a, b) == "all_tied"
    assert reason(a, completion("e", 3, " \n")) == "empty"
    assert reason(a, b, policy=Policy(ties="margin", margin=1)) == "all_tied"
    assert reason(a, completion("d", 6), policy=Policy(ties="margin", margin=2)) == "within_margin"
    same = completion("e", 7, "text a ")
    assert reason(a, same, policy=Policy(ties="keep")) == "same_text"
    assert reason(a, completion("f", 3, "text \u2003 a")) == "same_text"


def test_an_all_tie_row_never_gives_chosen_equal_to_rejected() -> None:
    same = [completion(name, 5, "the same answer") for name in "abcd"]
    for rule in ("random", "worst", "nearest"):
        for best in ("drawn", "first"):
            out = select(row(*same), Policy(rejected=rule, ties="keep", best=best))
            assert (out.pairs, out.reason) == ((), "same_text")


@given(st.sampled_from(TEXTS[:-1]), st.text(" \t\n\u00a0", max_size=3), st.integers(0, 90))
def test_texts_are_the_same_when_only_white_space_and_composition_differ(
    text: str, gap: str, words: int
) -> None:
    long = " ".join([text, *["more words"] * words, text])
    other = f"{gap}{long.replace(' ', ' ' + gap)}{gap}".replace("e\u0301", "\u00e9")
    assert same_text(long, other)
    assert not same_text(long, other + " end")
    assert not same_text(long, "start " + other)
    assert not same_text(f"{long} one {long}", f"{long} two {long}")


def test_keep_pairs_equal_scores_and_says_so() -> None:
    (pair,) = select(row(completion("a", 7), completion("b", 7)), Policy(ties="keep")).pairs
    assert pair.tie


def test_drop_keeps_a_prompt_as_long_as_one_completion_is_lower() -> None:
    out = select(
        row(completion("a", 9), completion("b", 9), completion("c", 9), completion("d", 1)), Policy()
    )
    assert out.pairs[0].rejected == 3
    assert out.shared_best


def test_a_shared_best_goes_to_the_one_that_has_somebody_to_beat() -> None:
    shared = row(completion("a", 9, "x"), completion("b", 9, "y"), completion("c", 2, "x"))
    for seed in range(20):
        assert chosen(select(shared, Policy(seed=seed))) == 1
    assert select(shared, Policy(best="first")).reason == "same_text"


def test_the_first_wins_where_the_edition_says_so() -> None:
    shared = row(completion("b", 9), completion("a", 9), completion("c", 2))
    assert {chosen(select(shared, Policy(best="first", seed=s, ties="keep"))) for s in range(20)} == {0}
    rejected = {
        select(shared, Policy(best="first", seed=s, ties="keep")).pairs[0].rejected for s in range(30)
    }
    assert rejected == {1, 2}


def outcomes(n: int, policy: Policy, *completions: Candidate) -> list[Outcome]:
    return [select(row(*completions, prompt=f"prompt {i}"), policy) for i in range(n)]


def test_a_shared_best_is_settled_evenly_over_prompts_and_the_same_way_each_time() -> None:
    best = (completion("a", 9), completion("b", 9), completion("c", 1))
    picks = Counter(chosen(o) for o in outcomes(600, Policy(), *best))
    assert set(picks) == {0, 1}
    assert 240 <= picks[0] <= 360
    again = [o.pairs for o in outcomes(600, Policy(), *best)]
    assert again == [o.pairs for o in outcomes(600, Policy(), *best)]
    assert again != [o.pairs for o in outcomes(600, Policy(seed=1), *best)]


def test_random_rejected_is_uniform_among_the_lower_ones() -> None:
    pool = (completion("a", 9), completion("b", 8), completion("c", 5), completion("d", 1))
    picks = Counter(o.pairs[0].rejected for o in outcomes(900, Policy(), *pool))
    assert set(picks) == {1, 2, 3}
    assert all(230 <= n <= 370 for n in picks.values())
    for rule, quantile, wanted in (("worst", None, 3), ("nearest", None, 1), ("quantile", 0.5, 2)):
        policy = Policy(rejected=rule, quantile=quantile)
        assert {o.pairs[0].rejected for o in outcomes(20, policy, *pool)} == {wanted}


def test_margin_is_inclusive_also_for_means_in_thirds() -> None:
    high = completion("a", None, honesty=None, helpfulness=5, truthfulness=4, instruction_following=4)
    low = completion("b", None, honesty=None, helpfulness=4, truthfulness=4, instruction_following=4)
    assert select(row(high, low), Policy("mean", ties="margin", margin=1 / 3)).pairs
    assert select(row(high, low), Policy("mean", ties="margin", margin=0.34)).reason == "within_margin"


def test_scores_that_differ_in_the_last_bit_are_a_tie() -> None:
    assert reason(completion("a", 0.1 + 0.2), completion("b", 0.3)) == "all_tied"


def test_the_smallest_margin_is_still_more_than_none() -> None:
    least = Policy(rejected="all-pairs", ties="margin", margin=1e-12)
    assert reason(completion("a", 3), completion("b", 3), policy=least) == "all_tied"
    assert [tuple(p)[:2] for p in select(row(completion("a", 3), completion("b", 4)), least).pairs] == [
        (1, 0)
    ]


def test_a_score_that_is_not_a_number_is_no_score() -> None:
    assert reason(completion("a", math.nan), completion("b", 3)) == "unscored"


def test_what_is_barred_takes_no_part() -> None:
    a, b, c = completion("a", 9), completion("b", 5), completion("c", 1)
    asked = row(a, b, c, prompt="Who?", source="truthful_qa")
    for barred, why in (
        (Barred(sources=frozenset({"truthful_qa"})), "source"),
        (Barred(questions=frozenset({"Who?"})), "in_suite"),
        (Barred(ids=frozenset({asked.prompt_id})), "flagged"),
        (Barred(ids=frozenset({"a", "b"})), "flagged"),
        (Barred(pairs=frozenset({frozenset("ab"), frozenset("ac")})), "flagged"),
    ):
        assert select(asked, Policy(), barred).reason == why
    assert select(asked, Policy(), Barred(questions=frozenset({"who?"}), sources=frozenset({"x"}))).pairs
    out = select(asked, Policy(), Barred(ids=frozenset({"a"})))
    assert (out.flagged, out.pairs[0].chosen, out.pairs[0].rejected) == (1, 1, 2)
    out = select(asked, Policy(), Barred(pairs=frozenset({frozenset("ab")})))
    assert (out.pairs[0].chosen, out.pairs[0].rejected) == (0, 2)
    every = select(asked, Policy(rejected="all-pairs"), Barred(pairs=frozenset({frozenset("cb")})))
    assert [(p.chosen, p.rejected) for p in every.pairs] == [(0, 1), (0, 2)]


@pytest.mark.parametrize(
    "text", ["", "both", "margin", "margin=", "margin=0", "margin=-1", "margin=nan", "margin=x"]
)
def test_ties_has_a_grammar(text: str) -> None:
    with pytest.raises(ValueError, match="margin=X"):
        parse_ties(text)


@pytest.mark.parametrize(
    "text", ["", "best", "quantile", "quantile=", "quantile=1.1", "quantile=nan", "margin=1"]
)
def test_rejected_has_a_grammar(text: str) -> None:
    with pytest.raises(ValueError, match="quantile=Q"):
        parse_rejected(text)


def test_config_settings_reach_the_policy() -> None:
    config = BinarizeConfig(score="aspect:honesty", rejected="worst", ties="margin=0.5", seed=7)
    assert config.policy() == Policy("aspect:honesty", "worst", "margin", 0.5, 7)
    config = BinarizeConfig(score="weighted", weights={"honesty": 2}, rejected="quantile=0.25", best="first")
    assert config.policy() == Policy(
        "weighted", "quantile", quantile=0.25, best="first", weights={"honesty": 2.0}
    )
    for bad in ({"score": "best"}, {"score": "aspect:"}, {"ties": "margin=0"}, {"test_fraction": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            BinarizeConfig(**bad)
    for bad in ({"score": "weighted"}, {"weights": {"honesty": 1}}):
        with pytest.raises(ValueError, match="belong together"):
            BinarizeConfig(**bad)
    for weight in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            BinarizeConfig(score="weighted", weights={"honesty": weight})
    with pytest.raises(ValueError, match="strictly ordered"):
        BinarizeConfig(rejected="all-pairs", ties="keep")
    assert BinarizeConfig(drop_sources="truthful_qa").drop_sources == ["truthful_qa"]
