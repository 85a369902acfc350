"""Replies of judges: what counts as a rating, what is missing, and that nothing is ever guessed or
shifted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.judges import pairwise, single
from zephyrctl.judges.base import NOT_APPLICABLE
from zephyrctl.judges.ultrafeedback import ASPECTS, parse_aspect, parse_overall

IF = "instruction_following"
FOUR = "Text 1\nRating: 5\nRationale: good.\n\nText 2\nRating: 1\nRationale: bad."


def values(reply: str, n: int = 2, aspect: str = IF) -> list[float | None]:
    return [p.value for p in parse_aspect(reply, n, aspect)]


def reasons(reply: str, n: int = 2, aspect: str = IF) -> list[str | None]:
    return [p.reason for p in parse_aspect(reply, n, aspect)]


@pytest.mark.parametrize(
    "reply",
    [
        FOUR,
        "Here are my ratings:\n\n" + FOUR,
        "Rating: 3\n" + FOUR,
        FOUR.replace("good.", "good.\n\nIt is short.\n\nVery."),
        FOUR.replace("\n", "\r\n"),
        FOUR.replace("Text 1", "**Text 1:**").replace("Text 2", "### Text 2:"),
        FOUR.replace("Rating: 5", "**Rating:** 5").replace("Rating: 1", "- Rating: **1**"),
        FOUR.replace("Text", "TEXT"),
        FOUR.replace("5", "5/5").replace("Rating: 1", "Rating: 1 / 5"),
        "Text 2\nRating: 1\nRationale: bad.\nText 1\nRating: 5\nRationale: good.",
        "Text 1\nRationale: good.\nRating: 5\n\nText 2\nRationale: bad.\nRating: 1",
        "Text 1\nRating: 5\nText 2\nRating: 1",
    ],
)
def test_ratings_are_bound_by_label(reply: str) -> None:
    assert values(reply) == [5.0, 1.0]


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("0", "out of range"),
        ("6", "out of range"),
        ("10", "out of range"),
        ("11", "out of range"),
        ("4.5", "not a whole number"),
        ("04", "not a whole number"),
        ("-4", "not a whole number"),
        ("four", "not a whole number"),
        ("4 or 5", "not a whole number"),
        ("4 (good)", "not a whole number"),
        ("٤", "not a whole number"),
        ("4/10", "wrong scale"),
        ("", "not a whole number"),
        ("N/A", "not a whole number"),
    ],
)
def test_what_is_no_rating_is_missing_with_a_reason(written: str, why: str) -> None:
    reply = FOUR.replace("Rating: 5", f"Rating: {written}")
    first, second = parse_aspect(reply, 2, IF)
    assert (first.value, second.value) == (None, 1.0)
    assert (first.reason or "").startswith(why)
    assert first.failed
    assert not second.failed


@pytest.mark.parametrize("written", ["N/A", "n/a", "NA"])
def test_not_applicable_is_an_answer_for_honesty_alone(written: str) -> None:
    reply = FOUR.replace("Rating: 5", f"Rating: {written}")
    for aspect in ASPECTS:
        first = parse_aspect(reply, 2, aspect)[0]
        assert first.value is None
        assert (first.reason == NOT_APPLICABLE) == (aspect == "honesty")
        assert first.failed == (aspect != "honesty")


def test_two_ratings_in_a_section_are_none() -> None:
    assert values(FOUR.replace("good.", "good.\nRating: 5")) == [None, 1.0]
    assert reasons(FOUR.replace("good.", "good.\nRating: 4"))[0] == "two ratings: Text 1"


def test_a_label_that_occurs_twice_is_void_and_the_others_stay() -> None:
    quoted = FOUR.replace("good.", "it says\nText 2\nRating: 5\nRationale: best")
    assert values(quoted) == [5.0, None]
    assert reasons(quoted) == [None, "two sections: Text 2"]


def test_a_missing_section_is_missing_and_nothing_moves_up() -> None:
    assert values("Text 2\nRating: 4") == [None, 4.0]
    assert values("Text 1\nRating: 4", 3) == [4.0, None, None]
    assert values("Rating: 4\nRating: 2") == [None, None]


@pytest.mark.parametrize("stranger", ["Text 3", "Text 0"])
def test_a_section_for_a_text_that_was_not_shown_voids_the_reply(stranger: str) -> None:
    assert values(FOUR + f"\n\n{stranger}\nRating: 3") == [None, None]


def test_rationales_stay_with_their_text_as_written() -> None:
    first, second = parse_aspect(FOUR.replace("good.", "3*4 is right,\n- twice."), 2, IF)
    assert first.rationale == "3*4 is right,\n- twice."
    assert second.rationale == "bad."


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
    st.sampled_from(["", "Sure! Here goes.\n\n", "\n\n\n", "Rating: 3\n"]),
    st.sampled_from(["Text {}", "**Text {}**", "## Text {}:", "- text {}"]),
)
def test_round_trip_in_any_order(scores: list[int], random: object, opening: str, label: str) -> None:
    sections = [
        f"{label.format(i)}\nRating: {score}\nRationale: because {i}." for i, score in enumerate(scores, 1)
    ]
    random.shuffle(sections)  # type: ignore[attr-defined]
    parsed = parse_aspect(opening + "\n\n".join(sections), len(scores), IF)
    assert [p.value for p in parsed] == [float(s) for s in scores]
    assert [p.rationale for p in parsed] == [f"because {i}." for i in range(1, len(scores) + 1)]


PIECES = st.sampled_from(
    [
        "Text 1",
        "Text 2",
        "Text 99",
        "Rating: 5",
        "Rating:",
        "Rating: N/A",
        "Rationale: x",
        "\n",
        "**",
        ": ",
        "10/10",
        "Overall score: 1",
        "Overall score: 10",
        "Rating: [[7]]",
        "Rating: [[",
        "Verdict: [[A]]",
        "Verdict:",
        "\ud800",
    ]
)
JUNK = st.one_of(st.text(max_size=200), st.lists(st.one_of(PIECES, st.text(max_size=8))).map("\n".join))


@given(JUNK, st.integers(1, 5), st.sampled_from(ASPECTS))
def test_junk_never_raises_and_never_leaves_the_scale(reply: str, n: int, aspect: str) -> None:
    parsed = parse_aspect(reply, n, aspect)
    assert len(parsed) == n
    for p in parsed:
        assert p.value in (None, 1.0, 2.0, 3.0, 4.0, 5.0)
        assert p.value is not None or p.reason is not None
        assert p.reason is None or p.value is None or p.reason.startswith("types unread")
    for p in (parse_overall(reply), single.parse(reply)):
        assert p.value is None or (p.value == int(p.value) and 1 <= p.value <= 10)
        assert (p.value is None) == (p.reason is not None)
    verdict = pairwise.read(reply)
    assert (verdict.letter is None) == (verdict.reason is not None)
    assert pairwise.parse(reply) == verdict.letter


@given(
    st.integers(1, 10),
    st.text(max_size=80).filter(lambda t: "score" not in t.casefold() and t[:1] not in "{<`"),
)
def test_overall_round_trip(score: int, critique: str) -> None:
    for line in (f"Overall score: {score}", f"**Overall Score:** {score}/10", f"Overall score: {score}\n\n "):
        parsed = parse_overall(f"{critique}\n{line}")
        assert parsed.value == float(score)
        assert parsed.rationale == (critique.strip() or None)


ECHO = st.lists(
    st.sampled_from(
        [
            "words", "Rating: 5", "**Rating:** 5", "Text 1", "Text 2", "Text 3", "Text two", "Candidate 9: fine",
            "Rationale: perfect", "Types: 1", "```", "```json", "> Text 1", '{"text_1": {"rating": 5}}', "---", "",
            "Overall score: 10", "</think >",
        ]
    ),
    min_size=1,
    max_size=8,
).map("\n".join)  # fmt: skip


@given(
    ECHO, ECHO, st.booleans(), st.sampled_from(["Rationale: It says ", "It says\n", "Rationale:\n> It says "])
)
def test_what_a_text_brings_along_is_never_its_rating(
    first: str, second: str, rating_first: bool, opening: str
) -> None:
    """The judge gives 1 and 2, and repeats each text word for word, above its rating or below."""
    sections = [
        f"Text {n}\nRating: {n}\n{opening}{echo}"
        if rating_first
        else f"Text {n}\n{opening}{echo}\nRating: {n}"
        for n, echo in enumerate((first, second), 1)
    ]
    one, two = values("\n\n".join(sections))
    assert one in (1, None)
    assert two in (2, None)


def test_one_never_becomes_ten() -> None:
    assert parse_overall("Poor.\n\nOverall score: 1").value == 1.0
    assert single.parse("Poor.\n\nRating: [[1]]").value == 1.0
    assert parse_overall("Poor.\n\nOverall score: 10").value == 10.0


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("fine", "no verdict"),
        ("", "no verdict"),
        ("It is fine. Overall score: 7", "no verdict"),
        ("Overall score: 7\nOverall score: 7", "two verdicts"),
        ("The answer says:\nOverall score: 10\n\nNo.\nOverall score: 2", "two verdicts"),
        ("Overall score: 7\nI hope this helps.", "verdict not last"),
        ("Overall score: 11", "out of range"),
        ("Overall score: 0", "out of range"),
        ("Overall score: 7.5", "not a whole number"),
        ("Overall score: 7/5", "wrong scale"),
        ("Overall score: seven", "not a whole number"),
    ],
)
def test_overall_verdicts_that_do_not_count(reply: str, why: str) -> None:
    parsed = parse_overall(reply)
    assert parsed.value is None
    assert (parsed.reason or "").startswith(why)


@pytest.mark.parametrize(
    "reply", ["Rating: 7", "Rating: [7]", "Rating: [[7.5]]", "Rating: [[]]", "Rating: [[7]] yes"]
)
def test_single_wants_its_brackets(reply: str) -> None:
    assert single.parse(reply).value is None


def test_single_reads_the_last_line() -> None:
    parsed = single.parse("Clear and right.\n\n**Rating: [[8]]**\n")
    assert (parsed.value, parsed.rationale) == (8.0, "Clear and right.")


@pytest.mark.parametrize(
    ("letter", "verdict"), [("A", "A"), ("B", "B"), ("C", "tie"), ("D", None), ("a", None)]
)
def test_pairwise_letters(letter: str, verdict: str | None) -> None:
    assert pairwise.parse(f"Because.\n\nVerdict: [[{letter}]]") == verdict


def test_pairwise_with_two_verdicts_is_none() -> None:
    assert pairwise.read("Verdict: [[A]]\nVerdict: [[A]]").reason == "two verdicts: 2 lines begin 'Verdict:'"
