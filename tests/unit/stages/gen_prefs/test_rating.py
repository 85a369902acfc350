"""Ratings are bound to completions by identity, orders are drawn by hash and recorded, and counts add up."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.asking.config import AskingConfig
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat
from zephyrctl.judges.ultrafeedback import ASPECTS
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.base import UNPAID, Answer, Ask, Failure
from zephyrctl.quote import read_blocks
from zephyrctl.records import FeedbackRow, Message, PromptRow, prompt_id
from zephyrctl.stages.gen_prefs.answered import Outcome, TooFew, Unfinished, completion_id
from zephyrctl.stages.gen_prefs.completing import Answering, draws_of
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.judging import JudgeRater, Judging, shown_order
from zephyrctl.stages.gen_prefs.rating import rate_chunk
from zephyrctl.stages.gen_prefs.tally import Tally

ANSWERING = Answering(42, 1.0, 1.0, 64)
JUDGING = Judging(42, ASPECTS, True, 0.0, 0.7, 3, 256)


@dataclass(frozen=True)
class Stub:
    label: str
    world: str = "sandbox"


def seat(name: str) -> Seat:
    return Seat(parse_model(f"sandbox:{name}"), Stub(name))  # type: ignore[arg-type]


POOL = [seat("p1"), seat("p2"), seat("p3"), seat("p4")]
JUDGE = seat("judge")
QUALITY = {"p1": 5, "p2": 4, "p3": 2, "p4": 1}


def items(n: int) -> list[Seed]:
    made = []
    for i in range(n):
        prompt = [Message(role="user", content=f"question {i}")]
        row = PromptRow(prompt_id=prompt_id(prompt), prompt=prompt)
        made.append(Seed(f"f:{i + 1}", "train", row))
    return made


def answer(text: str, outcome: str = "text") -> Answer:
    return Answer(text, outcome, "stop", "m", None, "k", False)  # type: ignore[arg-type]


def quality(text: str) -> int:
    return QUALITY[text.split()[-1]]


def judge(request: str) -> str:
    """A judge that knows who wrote what, and gives the writer's quality, in a shuffled and chatty reply."""
    blocks = read_blocks(request)
    if "ANSWER" in blocks:
        return f"Hm.\n\nOverall score: {2 * quality(blocks['ANSWER'])}"
    parts = [
        f"Text {name.split()[1]}\nRating: {quality(text)}\nRationale: by {text.split()[-1]}."
        for name, text in blocks.items()
        if name.startswith("TEXT ")
    ]
    return "My ratings:\n\n" + "\n\n".join(reversed(parts))


class World:
    """Everybody behind the caller. `spoil` may replace a reply."""

    def __init__(self, spoil: Callable[[Seat, Ask], Answer | Failure | None] | None = None) -> None:
        self.spoil = spoil or (lambda who, ask: None)
        self.asks: list[tuple[str, Ask]] = []

    def __call__(self, asks: Sequence[tuple[Seat, Ask]], task: str) -> list[Answer | Failure]:
        self.asks.extend((who.label, ask) for who, ask in asks)
        return [self.spoil(who, ask) or self.reply(who, ask) for who, ask in asks]

    def reply(self, who: Seat, ask: Ask) -> Answer:
        text = ask.messages[-1].content
        return answer(judge(text) if who.label == "judge" else f"{text} by {who.label}")


def rate(
    world: World, n: int = 3, pool: Sequence[Seat] = POOL, how: Judging = JUDGING
) -> tuple[list[Outcome], Tally]:
    tally = Tally()
    rows = rate_chunk(items(n), pool, JudgeRater(JUDGE, how), ANSWERING, world, tally)
    assert tally.completions_asked == tally.completions_kept + tally.left_out.total()
    assert tally.ratings_asked == tally.rated + tally.not_applicable + tally.unscored.total()
    return rows, tally


def feedback(rows: Sequence[Outcome]) -> list[FeedbackRow]:
    assert all(isinstance(r, FeedbackRow) for r in rows)
    return [r for r in rows if isinstance(r, FeedbackRow)]


def test_every_rating_reaches_its_own_completion() -> None:
    rows, tally = rate(World(), 12)
    for row in feedback(rows):
        assert [c.model for c in row.completions] == ["p1", "p2", "p3", "p4"]
        for c in row.completions:
            assert [r.aspect for r in c.ratings] == list(ASPECTS)
            assert {r.value for r in c.ratings} == {float(QUALITY[c.model])}
            assert {r.rationale for r in c.ratings} == {f"by {c.model}."}
            assert (c.overall, c.critique) == (2.0 * QUALITY[c.model], "Hm.")
    assert (tally.completions_kept, tally.rated, tally.judge_calls) == (48, 12 * 20, 12 * 8)


def test_four_completions_four_aspects_and_four_critiques_are_asked_per_prompt() -> None:
    world = World()
    rate(world, 1)
    assert Counter(name for name, _ in world.asks) == {"p1": 1, "p2": 1, "p3": 1, "p4": 1, "judge": 8}
    assert all(a.sampling.temperature == 1.0 for name, a in world.asks if name != "judge")
    assert all(a.sampling.temperature == 0.0 for name, a in world.asks if name == "judge")


def test_the_order_shown_is_recorded_and_differs_between_aspects_and_prompts() -> None:
    world = World()
    rows, _ = rate(world, 40)
    shown: dict[tuple[str, str], list[str]] = {}
    for _, ask in world.asks:
        blocks = read_blocks(ask.messages[-1].content)
        if "TEXT 1" in blocks:
            aspect = re.search(r"^Aspect: (\w+)$", ask.messages[-1].content, re.MULTILINE)
            assert aspect is not None
            texts = [blocks[f"TEXT {i}"] for i in range(1, 5)]
            shown[blocks["USER 1"], aspect[1]] = texts
    for row in feedback(rows):
        for c in row.completions:
            for r in c.ratings:
                assert r.position is not None
                assert shown[row.prompt[0].content, r.aspect][r.position - 1] == c.text
    places = Counter(r.position for row in feedback(rows) for r in row.completions[0].ratings)
    assert set(places) == {1, 2, 3, 4}
    assert all(20 <= n <= 60 for n in places.values())
    orders = {tuple(r.position for r in row.completions[0].ratings) for row in feedback(rows)}
    assert any(len(set(order)) > 1 for order in orders)


@given(
    st.lists(st.text("abcdef", min_size=1, max_size=4), unique=True, max_size=6),
    st.randoms(use_true_random=False),
)
def test_shown_order_does_not_depend_on_the_order_of_the_pool(ids: list[str], random: object) -> None:
    order = shown_order(ids, 42, "p", "honesty")
    mixed = list(ids)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert shown_order(mixed, 42, "p", "honesty") == order
    assert sorted(order) == sorted(ids)


def test_equal_texts_of_two_models_stay_two_completions() -> None:
    def spoil(who: Seat, ask: Ask) -> Answer | None:
        return answer("same by p1") if who.label in ("p1", "p2") else None

    row = feedback(rate(World(spoil), 1)[0])[0]
    assert len({c.completion_id for c in row.completions}) == 4
    assert row.completions[0].text == row.completions[1].text
    assert completion_id("m", 0, "x") != completion_id("m", 1, "x") != completion_id("n", 1, "x")


def test_a_model_twice_in_the_pool_draws_twice() -> None:
    pool = [seat("p1"), seat("p2"), seat("p1")]
    assert draws_of(pool) == [0, 0, 1]
    world = World()
    row = feedback(rate(world, 1, pool)[0])[0]
    assert len({c.completion_id for c in row.completions}) == 3
    first, _, second = (ask for name, ask in world.asks if name != "judge")
    assert (first.draw, second.draw) == (0, 1)
    assert first.sampling.seed != second.sampling.seed


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Failure("timeout", "120 s", "k"), "failed"),
        (answer("half", "length"), "cut_off"),
        (answer("no", "refusal"), "refusal"),
        (answer("", "empty"), "empty"),
    ],
)
def test_a_completion_that_is_no_answer_is_left_out_and_never_judged(
    reply: Answer | Failure, reason: str
) -> None:
    world = World(lambda who, ask: reply if who.label == "p2" else None)
    rows, tally = rate(world, 2)
    assert [[c.model for c in row.completions] for row in feedback(rows)] == [["p1", "p3", "p4"]] * 2
    assert tally.left_out == {reason: 2}
    assert tally.ratings_asked == 2 * 3 * 5
    assert all(
        r.value == QUALITY[c.model] for row in feedback(rows) for c in row.completions for r in c.ratings
    )


def test_a_prompt_with_one_completion_is_a_reject_and_the_others_keep_theirs() -> None:
    def spoil(who: Seat, ask: Ask) -> Answer | None:
        bad = who.label in ("p2", "p3", "p4") and ask.messages[-1].content == "question 1"
        return answer("no", "refusal") if bad else None

    rows, _ = rate(World(spoil), 3)
    assert [type(r).__name__ for r in rows] == ["FeedbackRow", "TooFew", "FeedbackRow"]
    assert isinstance(rows[1], TooFew)
    reject = rows[1].as_row()
    assert (reject["where"], reject["reason"]) == ("f:2", "too_few_completions")
    assert "p3 refusal" in reject["detail"]
    assert [r.prompt[0].content for r in rows if isinstance(r, FeedbackRow)] == ["question 0", "question 2"]
    assert all(
        r.value == QUALITY[c.model]
        for row in rows
        if isinstance(row, FeedbackRow)
        for c in row.completions
        for r in c.ratings
    )


def test_an_unreadable_judgement_is_asked_again_with_another_draw_at_the_retry_temperature() -> None:
    world = World(
        lambda who, ask: answer("I like them all.") if who.label == "judge" and ask.draw < 2 else None
    )
    rows, tally = rate(world, 1)
    assert all(c.overall is not None for c in feedback(rows)[0].completions)
    assert (tally.judge_calls, tally.asked_again, tally.unscored.total()) == (24, 16, 0)
    again = [a for name, a in world.asks if name == "judge" and a.draw > 0]
    assert {a.sampling.temperature for a in again} == {0.7}
    assert len({a.sampling.seed for name, a in world.asks if name == "judge"}) == 24


def test_what_stays_unreadable_is_missing_with_a_reason_and_never_a_default() -> None:
    world = World(lambda who, ask: answer("I like them all.") if who.label == "judge" else None)
    rows, tally = rate(world, 2)
    for c in feedback(rows)[0].completions:
        assert c.overall is None
        assert [r.value for r in c.ratings] == [None] * 4
        assert all((r.reason or "").startswith("no section") for r in c.ratings)
    assert tally.judge_calls == 2 * 8 * 3
    assert tally.unscored == {"no section": 32, "no verdict": 8}
    assert tally.rated == 0


def test_a_judge_that_fails_or_refuses_leaves_ratings_missing() -> None:
    world = World(lambda who, ask: Failure("timeout", "x", "k") if who.label == "judge" else None)
    _, tally = rate(world, 1, how=replace(JUDGING, judge_draws=1))
    assert tally.unscored == {"failed": 20}


def test_the_reply_with_most_readable_parts_is_taken_whole() -> None:
    def spoil(who: Seat, ask: Ask) -> Answer | None:
        text = ask.messages[-1].content
        if who.label != "judge" or "TEXT 1" not in read_blocks(text):
            return None
        good = judge(text)
        return (
            answer(good.replace("Text 4", "Text four").replace("Rating: 5", "Rating: 3"))
            if ask.draw == 1
            else answer("?")
        )

    rows, _ = rate(World(spoil), 1)
    values = {c.model: [r.value for r in c.ratings] for c in feedback(rows)[0].completions}
    assert all(v in (3.0, None) for v in values["p1"])
    missing = sum(v is None for vs in values.values() for v in vs)
    assert missing == 4


def test_not_applicable_is_an_answer_and_is_not_asked_again() -> None:
    def spoil(who: Seat, ask: Ask) -> Answer | None:
        text = ask.messages[-1].content
        if "Aspect: honesty" not in text:
            return None
        return answer(re.sub(r"Rating: \d", "Rating: N/A", judge(text)))

    rows, tally = rate(World(spoil), 1)
    assert (tally.not_applicable, tally.asked_again, tally.unscored.total()) == (4, 0, 0)
    honesty = [r for c in feedback(rows)[0].completions for r in c.ratings if r.aspect == "honesty"]
    assert [(r.value, r.reason) for r in honesty] == [(None, "n/a")] * 4


@given(st.integers(2, 6), st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_a_prompt_is_rated_alike_whatever_else_is_in_its_chunk(pool: int, n: int, random: object) -> None:
    members = [seat(["p1", "p2", "p3", "p4"][i % 4]) for i in range(pool)]
    chunk = items(n)
    together = rate_chunk(chunk, members, JudgeRater(JUDGE, JUDGING), ANSWERING, World(), Tally())
    alone = [
        rate_chunk([item], members, JudgeRater(JUDGE, JUDGING), ANSWERING, World(), Tally())[0]
        for item in chunk
    ]
    assert together == alone


def test_settings_with_the_models_name_win() -> None:
    spec = parse_model("sandbox:judge?temperature=0.3&max_tokens=9")
    sampling = Seat(spec, Stub("judge")).sampling(temperature=0.0, max_tokens=5, seed=1)  # type: ignore[arg-type]
    assert (sampling.temperature, sampling.max_tokens, sampling.top_p) == (0.3, 9, 1.0)


def test_config_wants_known_aspects_and_at_most_eight_models() -> None:
    for bad in ({"aspects": ["wit"]}, {"aspects": ["honesty", "honesty"]}, {"pool": ["m"] * 33}):
        with pytest.raises(ValueError, match=r"distinct names|at most 32"):
            GenPrefsConfig(teacher="sandbox", **bad)
    asking = set(AskingConfig.fields_with_role("runtime"))
    assert set(GenPrefsConfig.fields_with_role("runtime")) == asking | {"max_failures"}


def test_a_prompt_with_a_call_that_is_not_paid_for_is_left_out_whole() -> None:
    missing = Failure(UNPAID, "not in the ledger", "k")

    def spoil(who: Seat, ask: Ask) -> Answer | Failure | None:
        text = ask.messages[-1].content
        if who.label == "p2" and text == "question 0":
            return missing
        if who.label == "judge" and "question 1 by p3" in text and "Overall score" in text:
            return missing
        if who.label == "judge" and "question 2" in text and "Aspect: honesty" in text:
            return missing if ask.draw else answer("unreadable")
        return None

    rows, tally = rate(World(spoil), 5)
    assert [type(row) for row in rows] == [Unfinished] * 3 + [FeedbackRow] * 2
    alone, whole = (
        rate_chunk(items(5)[3:], POOL, JudgeRater(JUDGE, JUDGING), ANSWERING, World(), counted := Tally()),
        counted,
    )
    assert rows[3:] == alone
    assert tally == whole
    assert rows[0].as_row()["reason"] == UNPAID  # type: ignore[union-attr]


def test_without_overall_scores_the_aspects_alone_are_asked_for() -> None:
    world = World()
    rows, tally = rate(world, 2, how=replace(JUDGING, overall=False))
    assert Counter(ask.purpose for who, ask in world.asks if who == "judge") == {"aspect": 8}
    assert all(c.overall is None and len(c.ratings) == 4 for row in feedback(rows) for c in row.completions)
    assert tally.ratings_asked == 2 * 16
    with pytest.raises(ValueError, match="nothing would be rated"):
        GenPrefsConfig(teacher="sandbox", aspects=[], judge_mode="aspects")


def test_counts_of_chunks_add_up_to_those_of_the_whole() -> None:
    def spoil(who: Seat, ask: Ask) -> Answer | Failure | None:
        return answer("", "reasoning_cut") if who.label == "p4" and "3" in ask.messages[-1].content else None

    _, whole = rate(World(spoil), 7)
    total = Tally()
    for part in (items(7)[:2], items(7)[2:]):
        one = Tally()
        rate_chunk(part, POOL, JudgeRater(JUDGE, JUDGING), ANSWERING, World(spoil), one)
        total.add(one)
    assert total == whole
    assert whole.left_out == {"reasoning_cut": 1}
