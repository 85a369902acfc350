"""The pool's decision is that of rouge_score, for every text and at every threshold."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from zephyrctl.curation.novelty import Pool, Similar, rouge_f, tokens

SCORER = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)

WORDS = st.sampled_from(
    ["a", "the", "of", "cat", "dog", "fig", "9", "x1", "Über", "naïve", "中文", "İstanbul", "it's"]
)
SEPARATORS = st.sampled_from([" ", "  ", ", ", "\n", "-", "_", ""])
TEXTS = st.one_of(
    st.text(max_size=30),
    st.lists(st.tuples(WORDS, SEPARATORS), max_size=25).map(lambda pairs: "".join(w + s for w, s in pairs)),
)
THRESHOLDS = st.sampled_from([0.0, 0.1, 0.5, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0])


def theirs(one: str, other: str) -> float:
    """What rouge_score makes of a pair."""
    return float(SCORER.score(one, other)["rougeL"].fmeasure)


def nearest(pool: list[str], text: str, threshold: float) -> Similar | None:
    """The same decision by going through the whole pool with rouge_score."""
    scores = [theirs(other, text) for other in pool]
    best = max(scores, default=0.0)
    return Similar(best, scores.index(best)) if best > threshold else None


def filled(texts: list[str]) -> Pool:
    pool = Pool()
    for text in texts:
        pool.add(text)
    return pool


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, max_size=12), TEXTS, THRESHOLDS)
def test_any_texts_are_decided_as_by_rouge_score(texts: list[str], text: str, threshold: float) -> None:
    assert filled(texts).most_similar(text, threshold) == nearest(texts, text, threshold)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), THRESHOLDS)
def test_near_duplicates_are_decided_as_by_rouge_score(seed: int, threshold: float) -> None:
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(rng.choice((3, 12, 60)))]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 20))) for _ in range(15)]
    changed = rng.choice(texts).split()
    for _ in range(rng.randint(0, 5)):
        place = rng.randrange(len(changed))
        if rng.random() < 0.5:
            changed[place : place + 1] = []
        else:
            changed.insert(place, rng.choice(words))
        changed = changed or ["w0"]
    text = " ".join(changed)
    assert filled(texts).most_similar(text, threshold) == nearest(texts, text, threshold)


@given(TEXTS, TEXTS, st.integers(-1, 1))
def test_at_exactly_the_score_of_a_pair_the_text_is_kept(one: str, other: str, step: int) -> None:
    """The threshold is the pair's own score as rouge_score rounds it, or the float next to it."""
    score = theirs(one, other)
    threshold = score if step == 0 else min(1.0, max(0.0, math.nextafter(score, float(step))))
    assert (filled([one]).most_similar(other, threshold) is None) == (score <= threshold)


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_the_score_is_rounded_as_by_rouge_score(m: int, n: int, data: st.DataObject) -> None:
    lcs = data.draw(st.integers(0, min(m, n)))
    one = " ".join(["same"] * lcs + ["one"] * (m - lcs))
    other = " ".join(["same"] * lcs + ["other"] * (n - lcs))
    assert rouge_f(lcs, m, n) == theirs(one, other)


def test_seven_of_ten_words_are_kept_at_seven_tenths() -> None:
    """F is exactly 0.7 here: kept, as in Self-Instruct's code, where only what is above is dropped."""
    one, other = "a b c d e f g x y z", "a b c d e f g 1 2 3"
    assert theirs(one, other) == 0.7
    pool = filled([one])
    assert pool.most_similar(other, 0.7) is None
    near = other.replace("1", "x")
    assert pool.most_similar(near, 0.7) == Similar(theirs(one, near), 0)


def test_words_are_runs_of_ascii_letters_and_digits() -> None:
    assert tokens("It's 2 PM — naïve Straße_9!") == ["it", "s", "2", "pm", "na", "ve", "stra", "e", "9"]
    assert tokens("完全中文 ?!") == []


def test_a_text_without_words_is_always_new() -> None:
    pool = filled(["", "中文", "cat"])
    assert len(pool) == 3
    assert pool.most_similar("", 0.0) is None
    assert pool.most_similar("中文", 0.0) is None
    assert pool.most_similar("Cat!", 0.99) == Similar(1.0, 2)


def test_words_count_as_often_as_both_texts_have_them() -> None:
    assert filled(["the the the the"]).most_similar("the", 0.5) is None
    assert filled(["the the the the"]).most_similar("the the the", 0.7) == Similar(
        theirs("t t t t", "t t t"), 0
    )


def test_the_earliest_of_equally_near_texts_is_named() -> None:
    assert filled(["x y z", "a b c", "A B C"]).most_similar("a b c", 0.7) == Similar(1.0, 1)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_none_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Pool().most_similar("a", threshold)
