"""Chosen and rejected: the paper's rule, ties as decisions, and independence of every order."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.records import Completion, FeedbackRow, Message, Rating, prompt_id
from zephyrctl.stages.binarize.config import BinarizeConfig
from zephyrctl.stages.binarize.select import (
    Outcome,
    Policy,
    missing_ratings,
    parse_ties,
    score_of,
    select,
)


def completion(
    name: str, score: float | None, text: str | None = None, **aspects: float | None
) -> Completion:
    ratings = [
        Rating(aspect=a, value=v, reason=None if v is not None else "n/a", position=1)
        for a, v in aspects.items()
    ]
    return Completion(
        completion_id=name, model=f"m-{name}", text=text or f"text {name}", overall=score, ratings=ratings
    )


def row(*completions: Completion, prompt: str = "Sort: pear fig") -> FeedbackRow:
    messages = [Message(role="user", content=prompt)]
    return FeedbackRow(
        prompt_id=prompt_id(messages), prompt=messages, completions=list(completions), judge="judge"
    )


SCORES = st.lists(st.one_of(st.none(), st.integers(1, 10)), min_size=0, max_size=6)
POLICIES = st.builds(
    lambda rejected, ties, seed: Policy("overall", rejected, *ties, seed),
    st.sampled_from(["random", "worst"]),
    st.sampled_from([("drop", None), ("keep", None), ("margin", 1.0), ("margin", 2.5)]),
    st.integers(0, 50),
)


@st.composite
def rows(draw: st.DrawFn) -> FeedbackRow:
    scores = draw(SCORES)
    texts = draw(
        st.lists(st.sampled_from(["x", "y", "z", " x\n"]), min_size=len(scores), max_size=len(scores))
    )
    return row(*(completion(str(i), s, t) for i, (s, t) in enumerate(zip(scores, texts, strict=True))))


@given(rows(), POLICIES)
@settings(max_examples=400)
def test_every_outcome_is_a_lawful_pair_or_a_true_reason(feedback: FeedbackRow, policy: Policy) -> None:
    out = select(feedback, policy)
    scored = [c for c in feedback.completions if c.overall is not None]
    assert out.unscored == len(feedback.completions) - len(scored)
    assert (out.pair is None) == (out.reason is not None)
    least = {"drop": 0.5, "keep": 0.0, "margin": policy.margin}[policy.ties]
    lawful = [
        (a, b)
        for a, b in itertools.permutations(scored, 2)
        if a.overall == max(c.overall for c in scored)
        and a.overall - b.overall >= least
        and a.text.strip() != b.text.strip()
    ]
    if out.pair is None:
        assert not lawful
        return
    assert out.chosen is not None
    assert out.rejected is not None
    assert (out.chosen, out.rejected) in lawful
    assert out.pair.chosen[-1].content == out.chosen.text
    assert out.pair.rejected[-1].content == out.rejected.text
    assert (out.pair.score_chosen, out.pair.score_rejected) == (out.chosen.overall, out.rejected.overall)
    assert (out.pair.chosen_model, out.pair.rejected_model) == (out.chosen.model, out.rejected.model)
    assert out.pair.tie == (out.chosen.overall == out.rejected.overall)
    assert not (out.pair.tie and policy.ties == "drop")
    if policy.rejected == "worst":
        assert out.rejected.overall == min(b.overall for a, b in lawful if a == out.chosen)


@given(rows(), POLICIES, st.randoms(use_true_random=False))
def test_the_order_of_completions_does_not_matter(
    feedback: FeedbackRow, policy: Policy, random: object
) -> None:
    mixed = list(feedback.completions)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    other = select(feedback.model_copy(update={"completions": mixed}), policy)
    assert other.pair == select(feedback, policy).pair


def reason(*completions: Completion, policy: Policy | None = None) -> str | None:
    return select(row(*completions), policy or Policy()).reason


def test_the_reasons() -> None:
    a, b, c = completion("a", 7), completion("b", 7), completion("c", None)
    assert reason(a) == "single_completion"
    assert reason() == "single_completion"
    assert reason(a, c) == "unscored"
    assert reason(a, b) == "all_tied"
    assert reason(a, b, policy=Policy(ties="margin", margin=1)) == "all_tied"
    assert reason(a, completion("d", 6), policy=Policy(ties="margin", margin=2)) == "within_margin"
    same = completion("e", 7, "text a ")
    assert reason(a, same, policy=Policy(ties="keep")) == "same_text"
    assert reason(a, completion("f", 3, "text a")) == "same_text"


def test_keep_pairs_equal_scores_and_says_so() -> None:
    out = select(row(completion("a", 7), completion("b", 7)), Policy(ties="keep"))
    assert out.pair is not None
    assert out.pair.tie
    assert out.pair.chosen != out.pair.rejected


def test_drop_keeps_a_prompt_as_long_as_one_completion_is_lower() -> None:
    out = select(
        row(completion("a", 9), completion("b", 9), completion("c", 9), completion("d", 1)), Policy()
    )
    assert out.rejected is not None
    assert out.rejected.completion_id == "d"
    assert out.shared_best


def test_a_shared_best_goes_to_the_one_that_has_somebody_to_beat() -> None:
    for seed in range(20):
        out = select(
            row(completion("a", 9, "x"), completion("b", 9, "y"), completion("c", 2, "x")), Policy(seed=seed)
        )
        assert out.chosen is not None
        assert out.chosen.completion_id == "b"


def outcomes(n: int, policy: Policy, *completions: Completion) -> list[Outcome]:
    return [select(row(*completions, prompt=f"prompt {i}"), policy) for i in range(n)]


def test_a_shared_best_is_settled_evenly_over_prompts_and_the_same_way_each_time() -> None:
    best = (completion("a", 9), completion("b", 9), completion("c", 1))
    picks = Counter(o.chosen.completion_id for o in outcomes(600, Policy(), *best) if o.chosen)
    assert set(picks) == {"a", "b"}
    assert 240 <= picks["a"] <= 360
    again = [o.pair for o in outcomes(600, Policy(), *best)]
    assert again == [o.pair for o in outcomes(600, Policy(), *reversed(best))]
    assert again != [o.pair for o in outcomes(600, Policy(seed=1), *best)]


def test_random_rejected_is_uniform_among_the_lower_ones() -> None:
    pool = (completion("a", 9), completion("b", 8), completion("c", 5), completion("d", 1))
    picks = Counter(o.rejected.completion_id for o in outcomes(900, Policy(), *pool) if o.rejected)
    assert set(picks) == {"b", "c", "d"}
    assert all(230 <= n <= 370 for n in picks.values())
    worst = Counter(
        o.rejected.completion_id for o in outcomes(50, Policy(rejected="worst"), *pool) if o.rejected
    )
    assert worst == {"d": 50}


def test_margin_is_inclusive_also_for_means_in_thirds() -> None:
    high = completion("a", None, honesty=None, helpfulness=5, truthfulness=4, instruction_following=4)
    low = completion("b", None, honesty=None, helpfulness=4, truthfulness=4, instruction_following=4)
    assert score_of(high, "mean") == pytest.approx(13 / 3)
    assert select(row(high, low), Policy("mean", ties="margin", margin=1 / 3)).pair is not None
    assert select(row(high, low), Policy("mean", ties="margin", margin=0.34)).reason == "within_margin"


def test_not_applicable_is_left_out_of_the_mean_and_counted() -> None:
    one = completion("a", 3, honesty=None, helpfulness=5)
    assert score_of(one, "mean") == 5.0
    assert score_of(one, "aspect:honesty") is None
    assert score_of(one, "aspect:helpfulness") == 5.0
    assert score_of(one, "aspect:wit") is None
    assert missing_ratings([one, one], "mean") == {"not applicable": 2}
    assert missing_ratings([completion("b", None)], "overall") == {"unparsed": 1}
    assert score_of(completion("c", 3), "mean") is None


def test_a_score_that_is_not_a_number_is_no_score() -> None:
    assert score_of(completion("a", float("nan")), "overall") is None
    assert reason(completion("a", float("nan")), completion("b", 3)) == "unscored"


@pytest.mark.parametrize(
    "text", ["", "both", "margin", "margin=", "margin=0", "margin=-1", "margin=nan", "margin=x"]
)
def test_ties_has_a_grammar(text: str) -> None:
    with pytest.raises(ValueError, match="margin=X"):
        parse_ties(text)


def test_config_settings_reach_the_policy() -> None:
    config = BinarizeConfig(score="aspect:honesty", rejected="worst", ties="margin=0.5", seed=7)
    assert config.policy() == Policy("aspect:honesty", "worst", "margin", 0.5, 7)
    for bad in ({"score": "best"}, {"score": "aspect:"}, {"ties": "margin=0"}, {"test_fraction": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            BinarizeConfig(**bad)
