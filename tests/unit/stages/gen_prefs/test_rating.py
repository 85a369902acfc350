"""The pool answers, a rater rates: what is no answer is left out and counted, and counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.asking.config import AskingConfig
from zephyrctl.asking.estimate import Range
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.judges.base import Parsed
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.base import UNPAID, Answer, AnyProvider, Ask, Failure
from zephyrctl.records import Completion, FeedbackRow, Message, PromptRow, completion_id, prompt_id
from zephyrctl.stages.gen_prefs.answered import Answered, AskAll, Outcome, TooFew, Unfinished
from zephyrctl.stages.gen_prefs.completing import Answering, Pool
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.rating import rate_chunk
from zephyrctl.stages.gen_prefs.tally import Tally

ANSWERING = Answering(42, 1.0, 1.0, 64)


@dataclass(frozen=True)
class Stub:
    label: str
    world: str = "sandbox"


def seat(name: str) -> Seat:
    return Seat(parse_model(f"sandbox:{name}"), Stub(name.split("?")[0]))  # type: ignore[arg-type]


POOL = [seat("p1"), seat("p2"), seat("p3"), seat("p4")]
QUALITY = {"p1": 5.0, "p2": 4.0, "p3": 2.0, "p4": 1.0}


def items(n: int) -> list[Seed]:
    made = []
    for i in range(n):
        prompt = [Message(role="user", content=f"question {i}")]
        row = PromptRow(prompt_id=prompt_id(prompt), prompt=prompt)
        made.append(Seed(f"f:{i + 1}", "train", row))
    return made


def answer(text: str, outcome: str = "text") -> Answer:
    return Answer(text, outcome, "stop", "m", None, "k", False)  # type: ignore[arg-type]


class World:
    """Everybody behind the caller: each says who they are. `spoil` may replace a reply."""

    def __init__(self, spoil: Callable[[Seat, Ask], Answer | Failure | None] | None = None) -> None:
        self.spoil = spoil or (lambda who, ask: None)
        self.asks: list[tuple[str, Ask]] = []

    def __call__(self, asks: Sequence[tuple[Seat, Ask]], task: str) -> list[Answer | Failure]:
        self.asks.extend((who.label, ask) for who, ask in asks)
        return [
            self.spoil(who, ask) or answer(f"{ask.messages[-1].content} by {who.label}") for who, ask in asks
        ]


class Connoisseur:
    """A rater that reads who wrote a text, and asks one question for each prompt."""

    label = "judge"
    world = "sandbox"

    def inputs(self) -> list[InputRef]:
        return []

    def templates(self) -> dict[str, str]:
        return {}

    def providers(self) -> list[AnyProvider]:
        return []

    def draw(self, sketch: Sketch, prompts: int, asked: Range, texts: Range, pool: int) -> None:
        pass

    def close(self) -> None:
        pass

    def rate(self, answered: Sequence[Answered], ask: AskAll, tally: Tally) -> list[list[Completion] | None]:
        asks = [(seat("judge"), Ask((Message(role="user", content=a.kept[0].text),))) for a in answered]
        made: list[list[Completion] | None] = []
        for one, reply in zip(answered, ask(asks, "judgements"), strict=True):
            if isinstance(reply, Failure):
                made.append(None)
                continue
            for c in one.kept:
                tally.count(Parsed(QUALITY[c.text.split()[-1]]))
            made.append([c.model_copy(update={"overall": QUALITY[c.text.split()[-1]]}) for c in one.kept])
        return made


def rate(
    world: World, n: int = 3, pool: Sequence[Seat] = POOL, how: Answering = ANSWERING
) -> tuple[list[Outcome], Tally]:
    tally = Tally()
    rows = rate_chunk(items(n), Pool(pool, how), Connoisseur(), world, tally)
    assert tally.completions_asked == tally.completions_kept + tally.left_out.total()
    assert tally.ratings_asked == tally.rated + tally.not_applicable + tally.unscored.total()
    return rows, tally


def feedback(rows: Sequence[Outcome]) -> list[FeedbackRow]:
    assert all(isinstance(r, FeedbackRow) for r in rows)
    return [r for r in rows if isinstance(r, FeedbackRow)]


def test_completions_stand_in_the_order_of_the_pool_and_keep_their_ratings() -> None:
    world = World()
    rows, tally = rate(world, 12)
    for row in feedback(rows):
        assert [c.model for c in row.completions] == ["p1", "p2", "p3", "p4"]
        assert [c.overall for c in row.completions] == [5.0, 4.0, 2.0, 1.0]
        assert (row.judge, [c.draw for c in row.completions]) == ("judge", [0] * 4)
    assert (tally.completions_kept, tally.rated) == (48, 48)
    assert Counter(name for name, _ in world.asks) == dict.fromkeys(["p1", "p2", "p3", "p4", "judge"], 12)
    assert all(a.sampling.temperature == 1.0 for name, a in world.asks if name != "judge")


def test_equal_texts_of_two_models_stay_two_completions() -> None:
    def spoil(who: Seat, ask: Ask) -> Answer | None:
        return answer("same by p1") if who.label in ("p1", "p2") else None

    row = feedback(rate(World(spoil), 1)[0])[0]
    assert len({c.completion_id for c in row.completions}) == 4
    assert row.completions[0].text == row.completions[1].text
    assert completion_id("m", 0, "x") != completion_id("m", 1, "x") != completion_id("n", 1, "x")


def test_n_draws_of_each_member_are_numbered_and_sampled_apart() -> None:
    world = World()
    row = feedback(rate(world, 1, how=replace(ANSWERING, n=3))[0])[0]
    assert [(c.model, c.draw) for c in row.completions] == [
        (f"p{i}", draw) for i in range(1, 5) for draw in range(3)
    ]
    assert len({c.completion_id for c in row.completions}) == 12
    first = [ask for name, ask in world.asks if name == "p1"]
    assert [ask.draw for ask in first] == [0, 1, 2]
    assert len({ask.sampling.seed for ask in first}) == 3


def test_a_model_twice_in_the_pool_gives_further_draws() -> None:
    world = World()
    row = feedback(rate(world, 1, [seat("p1"), seat("p2"), seat("p1")], replace(ANSWERING, n=2))[0])[0]
    assert [(c.model, c.draw) for c in row.completions] == [
        ("p1", 0),
        ("p1", 1),
        ("p2", 0),
        ("p2", 1),
        ("p1", 2),
        ("p1", 3),
    ]


def test_more_draws_contain_fewer() -> None:
    few, many = World(), World()
    rate(few, 3)
    rate(many, 3, how=replace(ANSWERING, n=2))
    asked = [one for one in few.asks if one[0] != "judge"]
    assert all(one in many.asks for one in asked)


def test_members_that_differ_in_sampling_alone_are_two_authors() -> None:
    pool = [seat("p1?temperature=0.2"), seat("p1?temperature=1&top_p=0.9"), seat("p1")]
    world = World()
    row = feedback(rate(world, 1, pool)[0])[0]
    assert [c.model for c in row.completions] == ["p1?temperature=0.2", "p1?temperature=1&top_p=0.9", "p1"]
    assert {c.draw for c in row.completions} == {0}
    assert len({c.completion_id for c in row.completions}) == 3
    sampled = [(a.sampling.temperature, a.sampling.top_p) for name, a in world.asks if name == "p1"]
    assert sampled == [(0.2, 1.0), (1.0, 0.9), (1.0, 1.0)]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Failure("timeout", "120 s", "k"), "failed"),
        (answer("half", "length"), "cut_off"),
        (answer("no", "refusal"), "refusal"),
        (answer("", "empty"), "empty"),
        (answer(" \n"), "empty"),
    ],
)
def test_a_completion_that_is_no_answer_is_left_out_and_never_judged(
    reply: Answer | Failure, reason: str
) -> None:
    world = World(lambda who, ask: reply if who.label == "p2" else None)
    rows, tally = rate(world, 2)
    assert [[c.model for c in row.completions] for row in feedback(rows)] == [["p1", "p3", "p4"]] * 2
    assert (tally.completions_asked, tally.left_out) == (8, {reason: 2})
    assert tally.ratings_asked == 2 * 3


def test_a_prompt_with_one_completion_is_a_reject_and_the_others_keep_theirs() -> None:
    def spoil(who: Seat, ask: Ask) -> Answer | None:
        bad = who.label in ("p2", "p3", "p4") and ask.messages[-1].content == "question 1"
        return answer("no", "refusal") if bad else None

    rows, tally = rate(World(spoil), 3)
    assert [type(r).__name__ for r in rows] == ["FeedbackRow", "TooFew", "FeedbackRow"]
    assert isinstance(rows[1], TooFew)
    reject = rows[1].as_row()
    assert (reject["where"], reject["reason"]) == ("f:2", "too_few_completions")
    assert "p3 refusal" in reject["detail"]
    assert [r.prompt[0].content for r in rows if isinstance(r, FeedbackRow)] == ["question 0", "question 2"]
    assert (tally.completions_asked, tally.completions_kept) == (12, 9)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=30)
def test_a_prompt_is_rated_alike_whatever_else_is_in_its_chunk(pool: int, n: int, draws: int) -> None:
    seats = [seat(["p1", "p2", "p3", "p4"][i % 4]) for i in range(pool)]
    how = Pool(seats, replace(ANSWERING, n=draws, members=3))
    chunk = items(n)
    together = rate_chunk(chunk, how, Connoisseur(), World(), Tally())
    alone = [rate_chunk([item], how, Connoisseur(), World(), Tally())[0] for item in chunk]
    assert together == alone


def test_a_prompt_with_a_call_that_is_not_paid_for_is_left_out_whole() -> None:
    missing = Failure(UNPAID, "not in the ledger", "k")

    def spoil(who: Seat, ask: Ask) -> Answer | Failure | None:
        text = ask.messages[-1].content
        if who.label == "p2" and text == "question 0":
            return missing
        return missing if who.label == "judge" and "question 1" in text else None

    rows, tally = rate(World(spoil), 5)
    assert [type(row) for row in rows] == [Unfinished] * 2 + [FeedbackRow] * 3
    counted = Tally()
    assert rows[2:] == rate_chunk(items(5)[2:], Pool(POOL, ANSWERING), Connoisseur(), World(), counted)
    assert tally.completions_asked == counted.completions_asked
    assert isinstance(rows[0], Unfinished)
    assert rows[0].as_row()["reason"] == UNPAID


def test_counts_of_chunks_add_up_to_those_of_the_whole() -> None:
    def spoil(who: Seat, ask: Ask) -> Answer | Failure | None:
        return answer("", "reasoning_cut") if who.label == "p4" and "3" in ask.messages[-1].content else None

    _, whole = rate(World(spoil), 7)
    total = Tally()
    for part in (items(7)[:2], items(7)[2:]):
        one = Tally()
        rate_chunk(part, Pool(POOL, ANSWERING), Connoisseur(), World(spoil), one)
        total.add(one)
    assert total == whole
    assert whole.left_out == {"reasoning_cut": 1}


def test_settings_with_the_models_name_win() -> None:
    spec = parse_model("sandbox:judge?temperature=0.3&max_tokens=9&effort=low")
    sampling = Seat(spec, Stub("judge")).sampling(temperature=0.0, max_tokens=5, seed=1)  # type: ignore[arg-type]
    assert (sampling.temperature, sampling.max_tokens, sampling.top_p) == (0.3, 9, 1.0)
    assert sampling.effort == "low"
    assert POOL[0].sampling(temperature=0.0, max_tokens=5, seed=1).effort is None


def test_config_says_what_cannot_be_asked() -> None:
    for bad in (
        {"aspects": ["wit"]},
        {"aspects": ["honesty", "honesty"]},
        {"pool": ["m"] * 33},
        {"aspects": [], "judge_mode": "aspects"},
        {"completions": "feedback", "prompts": "p.jsonl"},
        {"members": 1},
        {"n": 0},
        {"principles": "others"},
    ):
        with pytest.raises(
            ValueError, match=r"distinct names|at most 32|nothing would|no place|greater|Input should"
        ):
            GenPrefsConfig.model_validate({"teacher": "sandbox", **bad})
    asking = set(AskingConfig.fields_with_role("runtime"))
    assert set(GenPrefsConfig.fields_with_role("runtime")) == asking | {"max_failures"}
    assert set(GenPrefsConfig.fields_with_role("input")) >= {"prompts", "completions", "suites", "tokenizer"}
    assert GenPrefsConfig.model_validate({"filters": "persona", "pool": "m"}).pool == ["m"]


def test_draws_at_temperature_zero_are_pointed_out() -> None:
    pool = [seat("p1?temperature=0"), seat("p2"), seat("p3?temperature=0"), seat("p3?temperature=0")]
    assert Pool(pool, ANSWERING).repeated_greedily() == ["p3?temperature=0"]
    assert Pool(pool, replace(ANSWERING, n=2)).repeated_greedily() == [
        "p1?temperature=0",
        "p3?temperature=0",
    ]
