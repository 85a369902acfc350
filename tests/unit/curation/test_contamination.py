"""Overlaps of texts with evaluation suites: planted ones are found, nothing else is."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.curation.contamination import COMMON, Index, N, SuiteText, words

LONG = (
    "A carpenter saws a plank of four metres into pieces of sixty centimetres each; how many whole pieces does "
    "he get and how long is the rest?"
)
SHORT = "Who built the old lighthouse?"


def index(*texts: str, whole: bool = True) -> Index:
    return Index(SuiteText("suite", str(n), text, whole) for n, text in enumerate(texts))


@pytest.mark.parametrize(
    ("text", "how"),
    [
        (LONG, "exact"),
        (f"\n {LONG}\t", "exact"),
        (LONG.upper(), "normalised"),
        (LONG.replace(" ", "  \n"), "normalised"),
        (LONG.replace(";", " -").replace("?", ""), "normalised"),
        (f"Please answer: {LONG} Thank you.", "13-gram"),
        (" ".join(LONG.split()[5:18]), "13-gram"),
        (" ".join(LONG.split()[5:17]), None),
        (LONG.replace("pieces", "parts").replace("plank", "board").replace("whole", "full"), None),
    ],
)
def test_the_three_ways(text: str, how: str | None) -> None:
    found = index(LONG).find([text])
    assert (found.how if found else None) == how


def test_a_short_item_is_only_found_whole() -> None:
    known = index(SHORT)
    assert known.find([SHORT.lower()]) is not None
    assert (
        known.find([f"{SHORT} Answer in one sentence, please, and give the year in which it was finished."])
        is None
    )


def test_accents_and_typographic_forms_are_one() -> None:
    known = index("Le café “Étoile” est‐il fermé ?")
    assert known.find(['le cafe\u0301 "e\u0301toile" est-il ferme\u0301?']) is not None
    assert words("ﬁne ２０２６") == ("fine", "2026")


def test_chinese_characters_are_words() -> None:
    item = "请简要说明为什么海水是咸的而湖水通常不是"
    assert len(words(item)) == 20
    found = index(item).find([f"问题:{item}谢谢"])
    assert found is not None
    assert found.how == "13-gram"


def test_the_strongest_overlap_of_any_text_is_given() -> None:
    known = index(LONG, SHORT)
    found = known.find([f"so {LONG}", SHORT.upper(), SHORT])
    assert found is not None
    assert (found.how, found.item, found.overlap) == ("exact", "1", SHORT)


def test_what_overlaps_is_shown() -> None:
    found = index(LONG).find([f"Now then: {LONG}"])
    assert found is not None
    assert found.overlap == " ".join(words(LONG)[:N])
    whole = index("word " * 100).find(["word " * 100])
    assert whole is not None
    assert len(whole.overlap) == 201


def test_texts_without_a_word_match_nothing_but_themselves() -> None:
    known = index("?!", "", "   ")
    assert known.find(["..."]) is None
    assert known.find([""]) is None
    assert known.find(["?!"]) is not None


def test_an_option_counts_by_its_13_grams_only() -> None:
    known = index(LONG, "Paris", whole=False)
    assert known.find(["Paris"]) is None
    found = known.find([LONG])
    assert found is not None
    assert found.how == "13-gram"


def boiler(count: int) -> list[str]:
    shared = "choose the one answer that fits best and write only its letter into the box"
    return [f"question number {n} about topic {n * 7}: {shared}" for n in range(count)]


def test_what_many_items_share_says_nothing() -> None:
    prompt = "here is mine: choose the one answer that fits best and write only its letter into the box"
    assert index(*boiler(COMMON)).find([prompt]) is not None
    known = index(*boiler(COMMON + 1))
    assert known.find([prompt]) is None
    assert known.common == 3
    found = known.find([boiler(COMMON + 1)[4]])
    assert found is not None
    assert found.how == "exact"


def test_copies_of_an_item_do_not_make_it_common() -> None:
    known = Index(SuiteText(f"copy-{n}", "1", LONG) for n in range(COMMON + 5))
    found = known.find([f"Please: {LONG}"])
    assert found is not None
    assert found.suite == "copy-0"


WORDS = st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=6), min_size=N, max_size=40)
PUNCTUATION = st.sampled_from([" ", "  ", ", ", ".\n", " - ", "; "])


@given(st.lists(WORDS, min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_planted_overlaps_are_always_found(items: list[list[str]], data: st.DataObject) -> None:
    known = index(*(" ".join(item) for item in items))
    item = data.draw(st.sampled_from(items))
    start = data.draw(st.integers(0, len(item) - N))
    piece = item[start : start + N]
    mangled = "".join(w.upper() + data.draw(PUNCTUATION) for w in piece)
    before, after = (" ".join(data.draw(WORDS)) for _ in range(2))
    assert known.find([f"{before} {mangled}{after}"]) is not None


@given(st.lists(WORDS, min_size=1, max_size=6), WORDS)
@settings(max_examples=60, deadline=None)
def test_other_words_never_raise_an_alarm(items: list[list[str]], prompt: list[str]) -> None:
    known = index(*(" ".join(item) for item in items))
    # digits never stand in the items, so no word of the prompt is one of theirs
    assert known.find([" ".join(f"{word}7" for word in prompt)]) is None


@given(
    st.lists(st.sampled_from([LONG, SHORT, "x " * 20, LONG + " again", *boiler(12)]), min_size=1),
    st.randoms(),
)
@settings(max_examples=60, deadline=None)
def test_the_order_of_items_changes_nothing(texts: list[str], rng: random.Random) -> None:
    entries = [SuiteText("s", str(n), text, whole=n % 3 > 0) for n, text in enumerate(texts)]
    shuffled = entries[:]
    rng.shuffle(shuffled)
    one, other = Index(entries), Index(shuffled)
    for prompt in (LONG, f"well, {LONG}", SHORT, "x " * 15, boiler(3)[2], f"and {boiler(3)[2]}"):
        assert one.find([prompt]) == other.find([prompt])
    assert (one.common, len(one)) == (other.common, len(other))
