"""The judge: what it is asked, what of a reply counts, the one short repair turn, and counts that add up."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat
from zephyrctl.judges.ultrafeedback import ASPECTS
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.base import UNPAID, Answer, Ask, Failure
from zephyrctl.providers.hosted.capabilities import SERVER, Accepts
from zephyrctl.quote import read_blocks
from zephyrctl.records import Completion, Message, PromptRow, completion_id, prompt_id
from zephyrctl.stages.gen_prefs.answered import Answered
from zephyrctl.stages.gen_prefs.judging import JudgeRater, Judging
from zephyrctl.stages.gen_prefs.tally import Tally

JUDGING = Judging(42, ASPECTS, True, 0.0, 512)
KNOWN = Accepts(reasoning="none", efforts=(), context=1000)
TYPED = ("truthfulness", "helpfulness")


@dataclass(frozen=True)
class Stub:
    label: str
    accepts: Accepts = SERVER
    world: str = "sandbox"


def seat(accepts: Accepts = SERVER) -> Seat:
    return Seat(parse_model("sandbox:judge"), Stub("judge", accepts))  # type: ignore[arg-type]


def prompts(n: int, texts: int = 4) -> list[Answered]:
    made = []
    for i in range(n):
        prompt = [Message(role="user", content=f"question {i}")]
        row = PromptRow(prompt_id=prompt_id(prompt), prompt=prompt)
        kept = [
            Completion(
                completion_id=completion_id(f"m{k}", 0, f"quality {k + 1}"),
                model=f"m{k}",
                text=f"quality {k + 1}",
                principle="Secretly be brief.",
            )
            for k in range(texts)
        ]
        made.append(Answered(Seed(f"f:{i + 1}", "train", row), kept))
    return made


def said(text: str, outcome: str = "text") -> Answer:
    return Answer(text, outcome, "stop", "m", None, "k", False)  # type: ignore[arg-type]


def is_repair(ask: Ask) -> bool:
    return ask.purpose.endswith(" repair")


def quality(text: str) -> int:
    return int(text.split()[-1])


def judge(ask: Ask) -> Answer:
    """A judge that gives every text the quality that it names, in the form that is asked for, out of order."""
    request = ask.messages[0].content
    repair = is_repair(ask)
    blocks = read_blocks(request)
    if "ANSWER" in blocks:
        score = 2 * quality(blocks["ANSWER"])
        if ask.schema:
            return said(json.dumps({"score": score} if repair else {"critique": "Hm.", "score": score}))
        return said(f"Overall score: {score}" if repair else f"Hm.\n\nOverall score: {score}")
    found = {int(name.split()[1]): quality(text) for name, text in blocks.items() if name.startswith("TEXT ")}
    if ask.schema:
        typed = "types" in ask.schema.definition["properties"]["text_1"]["properties"]
        fields = {
            f"text_{n}": {"rating": str(q) if "honesty" in request else q, "rationale": f"is {q}"}
            | ({"types": [3, 1]} if typed else {})
            for n, q in found.items()
        }
        return said(json.dumps(dict(reversed(fields.items()))))
    kinds = "Types: 1, 3\n" if "Types:" in request else ""
    sections = [
        f"Text {n}\n{kinds}Rating: {q}" + ("" if repair else f"\nRationale: is {q}") for n, q in found.items()
    ]
    return said("My ratings:\n\n" + "\n\n".join(reversed(sections)))


class World:
    """The judge behind the caller. `spoil` may replace a reply."""

    def __init__(self, spoil: Callable[[Ask], Answer | Failure | None] | None = None) -> None:
        self.spoil = spoil or (lambda ask: None)
        self.asks: list[Ask] = []
        self.tasks: list[str] = []

    def __call__(self, asks: Sequence[tuple[Seat, Ask]], task: str) -> list[Answer | Failure]:
        self.asks.extend(ask for _, ask in asks)
        self.tasks.append(task)
        return [self.spoil(ask) or judge(ask) for _, ask in asks]

    def of(self, purpose: str) -> list[Ask]:
        return [ask for ask in self.asks if ask.purpose == purpose]

    def repairs(self) -> list[Ask]:
        return [ask for ask in self.asks if is_repair(ask)]


def rate(
    world: World, n: int = 2, how: Judging = JUDGING, accepts: Accepts = SERVER, texts: int = 4
) -> tuple[list[list[Completion] | None], Tally]:
    tally = Tally()
    made = JudgeRater(seat(accepts), how).rate(prompts(n, texts), world, tally)
    assert tally.ratings_asked == tally.rated + tally.not_applicable + tally.unscored.total()
    assert tally.repaired_ok <= tally.repaired
    return made, tally


def whole(made: Sequence[list[Completion] | None]) -> list[Completion]:
    assert all(group is not None for group in made)
    return [c for group in made for c in group or ()]


def first(what: str) -> Callable[[Ask], Answer | None]:
    """Spoils the first reply to every request, and no repair."""
    return lambda ask: None if is_repair(ask) else said(what)


@pytest.mark.parametrize("accepts", [SERVER, KNOWN])
def test_every_rating_reaches_its_own_completion_in_words_and_as_json(accepts: Accepts) -> None:
    world = World()
    made, tally = rate(world, 6, accepts=accepts)
    for c in whole(made):
        assert [r.aspect for r in c.ratings] == list(ASPECTS)
        assert {r.value for r in c.ratings} == {float(quality(c.text))}
        assert {r.rationale for r in c.ratings} == {f"is {quality(c.text)}"}
        assert [r.types for r in c.ratings] == [[1, 3] if r.aspect in TYPED else [] for r in c.ratings]
        assert (c.overall, c.critique) == (2.0 * quality(c.text), "Hm.")
    assert (tally.judge_calls, tally.rated, tally.repaired) == (6 * 8, 6 * 20, 0)
    assert world.tasks == ["judgements"]
    assert Counter(ask.purpose for ask in world.asks) == {"aspect": 24, "overall": 24}
    assert all((ask.schema is not None) == (accepts is KNOWN) for ask in world.asks)


def test_every_completion_stands_in_every_place_once_and_it_is_recorded() -> None:
    world = World()
    made, _ = rate(world, 5)
    for c in whole(made):
        assert sorted(r.position or 0 for r in c.ratings) == [1, 2, 3, 4]
    shown = {}
    for ask in world.of("aspect"):
        blocks = read_blocks(ask.messages[0].content)
        aspect = re.search(r"^Aspect: (\w+)$", ask.messages[0].content, re.MULTILINE)
        assert aspect
        shown[blocks["USER 1"], aspect[1]] = [blocks[f"TEXT {n}"] for n in (1, 2, 3, 4)]
    for number, group in enumerate(made):
        for c in group or ():
            for r in c.ratings:
                assert shown[f"question {number}", r.aspect][(r.position or 0) - 1] == c.text


def test_another_order_can_be_taken_and_another_draw() -> None:
    def fixed(ids: Sequence[str], aspects: Sequence[str], seed: int, prompt: str) -> dict[str, list[str]]:
        return {aspect: list(ids) for aspect in aspects}

    worlds = World(), World()
    for draw, world in enumerate(worlds):
        made = JudgeRater(seat(), JUDGING, draw=draw, order=fixed).rate(prompts(1), world, Tally())
        assert [[r.position for r in c.ratings] for c in whole(made)] == [[n] * 4 for n in (1, 2, 3, 4)]
    one, other = (world.asks for world in worlds)
    assert [a.messages for a in one] == [a.messages for a in other]
    assert {a.draw for a in one} == {0}
    assert {a.draw for a in other} == {1}
    assert not {a.sampling.seed for a in one} & {a.sampling.seed for a in other}


def test_the_judge_sees_the_prompt_and_not_what_a_model_was_told_besides() -> None:
    world = World()
    rate(world, 1)
    for ask in world.asks:
        assert [m.role for m in ask.messages] == ["user"]
        assert "Secretly" not in ask.messages[0].content
        assert "m1" not in ask.messages[0].content


def test_one_repair_turn_in_the_same_conversation_and_no_more() -> None:
    world = World(first("I like them all."))
    made, tally = rate(world, 1, accepts=replace(KNOWN, schema=False))
    assert world.tasks == ["judgements", "repairs"]
    assert (tally.judge_calls, tally.repaired, tally.repaired_ok) == (16, 8, 8)
    assert tally.unscored.total() == 0
    for c in whole(made):
        assert {r.value for r in c.ratings} == {float(quality(c.text))}
        assert c.overall == 2.0 * quality(c.text)
        assert c.critique == "I like them all."
    again = world.repairs()
    asked = {ask.messages[0].content: ask for ask in world.asks if not is_repair(ask)}
    for ask in again:
        assert [m.role for m in ask.messages] == ["user", "assistant", "user"]
        assert ask.messages[1].content == "I like them all."
        assert "could not be read" in ask.messages[2].content
        before = asked[ask.messages[0].content]
        assert ask.sampling.seed == before.sampling.seed
        assert ask.sampling.max_tokens < before.sampling.max_tokens


def test_a_judge_that_may_reason_keeps_its_room_in_the_repair_turn() -> None:
    world = World(first("?"))
    rate(world, 1, accepts=replace(KNOWN, reasoning="optional"))
    assert {ask.sampling.max_tokens for ask in world.asks} == {512}


def test_what_was_readable_stays_and_only_what_was_missing_is_filled() -> None:
    def spoil(ask: Ask) -> Answer | None:
        if "TEXT 1" not in ask.messages[0].content:
            return None
        good = judge(ask).text
        if is_repair(ask):
            return said(re.sub(r"Rating: \d", "Rating: 3", good))
        return said(good.replace("Text 4", "Text four"))

    world = World(spoil)
    made, tally = rate(world, 3)
    ratings = [(c, r) for c in whole(made) for r in c.ratings]
    for c, r in ratings:
        assert r.value == (3.0 if r.position == 4 else float(quality(c.text)))
        assert r.rationale == (None if r.position == 4 else f"is {quality(c.text)}")
    assert (tally.repaired, tally.repaired_ok) == (12, 12)


def test_a_rationale_of_the_first_reply_goes_with_a_rating_of_the_second() -> None:
    made, _ = rate(World(lambda ask: None if is_repair(ask) else said(halved(judge(ask).text))), 1)
    for c in whole(made):
        assert {(r.value, r.rationale) for r in c.ratings} == {
            (float(quality(c.text)), f"is {quality(c.text)}")
        }
        assert c.critique == "Hm."


def halved(text: str) -> str:
    return re.sub(r"(Rating|score): (\d+)", r"\1: \2.5", text)


def test_what_stays_unreadable_is_missing_with_its_first_reason_and_never_a_default() -> None:
    world = World(lambda ask: said("?" if is_repair(ask) else "I like them all."))
    made, tally = rate(world, 2)
    for c in whole(made):
        assert c.overall is None
        assert [r.value for r in c.ratings] == [None] * 4
        assert [r.reason for r in c.ratings] == [
            f"no section after repair: Text {r.position}" for r in c.ratings
        ]
    assert (tally.judge_calls, tally.repaired, tally.repaired_ok) == (32, 16, 0)
    assert tally.unscored == {"no section after repair": 32, "no verdict after repair": 8}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Failure("timeout", "120 s", "k"), "failed"),
        (said("no", "refusal"), "refusal"),
        (said("", "filtered"), "filtered"),
        (said("", "reasoning_cut"), "reasoning_cut"),
    ],
)
def test_a_failed_or_refused_request_gets_no_repair(reply: Answer | Failure, reason: str) -> None:
    world = World(lambda ask: reply)
    _, tally = rate(world, 1)
    assert tally.unscored == {reason: 20}
    assert (tally.judge_calls, tally.repaired, world.tasks) == (8, 0, ["judgements"])


@pytest.mark.parametrize(
    ("text", "outcome"), [("Text 1\nRating: 1", "length"), ("", "empty"), (" \n", "text")]
)
def test_a_reply_that_was_cut_or_empty_is_asked_for_once_more_in_short(text: str, outcome: str) -> None:
    """Nothing of a cut reply counts: its last number may be half of one."""
    world = World(lambda ask: None if is_repair(ask) else said(text, outcome))
    made, tally = rate(world, 1)
    assert all(r.value == float(quality(c.text)) for c in whole(made) for r in c.ratings)
    assert (tally.repaired, tally.repaired_ok) == (8, 8)
    roles = {tuple(m.role for m in ask.messages) for ask in world.repairs()}
    assert roles == ({("user", "assistant", "user")} if text.strip() else {("user",)})


def test_a_repair_turn_that_fails_leaves_the_rating_missing_for_its_first_reason() -> None:
    world = World(lambda ask: Failure("timeout", "x", "k") if is_repair(ask) else said("?"))
    _, tally = rate(world, 1)
    assert tally.unscored == {"no section after repair": 16, "no verdict after repair": 4}
    assert (tally.judge_calls, tally.repaired, tally.repaired_ok) == (16, 8, 0)


def test_repair_can_be_switched_off() -> None:
    world = World(lambda ask: said("?"))
    _, tally = rate(world, 1, replace(JUDGING, repair=False))
    assert tally.unscored == {"no section": 16, "no verdict": 4}
    assert (tally.judge_calls, tally.repaired) == (8, 0)


def test_not_applicable_is_an_answer_and_gets_no_repair() -> None:
    def spoil(ask: Ask) -> Answer | None:
        if "Aspect: honesty" not in ask.messages[0].content:
            return None
        return said(re.sub(r"Rating: \d", "Rating: N/A", judge(ask).text))

    made, tally = rate(World(spoil), 1)
    assert (tally.not_applicable, tally.repaired, tally.unscored.total()) == (4, 0, 0)
    honesty = [r for c in whole(made) for r in c.ratings if r.aspect == "honesty"]
    assert [(r.value, r.reason) for r in honesty] == [(None, "n/a")] * 4


def test_a_prompt_with_a_call_that_is_not_paid_for_has_no_ratings_and_is_counted_nowhere() -> None:
    missing = Failure(UNPAID, "not in the ledger", "k")

    def spoil(ask: Ask) -> Answer | Failure | None:
        text = ask.messages[0].content
        if "question 0" in text and "Aspect: honesty" in text:
            return missing
        if "question 1" in text and "ANSWER" in text:
            return missing if is_repair(ask) else said("?")
        return None

    made, tally = rate(World(spoil), 4)
    assert [group is None for group in made] == [True, True, False, False]
    alone = Tally()
    JudgeRater(seat(), JUDGING).rate(prompts(4)[2:], World(), alone)
    assert tally == alone


@given(st.integers(1, 5), st.integers(2, 5), st.data())
@settings(max_examples=30)
def test_a_prompt_is_rated_alike_whatever_else_is_in_its_chunk(
    n: int, texts: int, data: st.DataObject
) -> None:
    broken = data.draw(st.sets(st.integers(0, n - 1)))

    def spoil(ask: Ask) -> Answer | None:
        text = read_blocks(ask.messages[0].content)["USER 1"]
        return said("?") if int(text.split()[1]) in broken and not is_repair(ask) else None

    chunk = prompts(n, texts)
    rater = JudgeRater(seat(), JUDGING)
    together = rater.rate(chunk, World(spoil), Tally())
    assert together == [rater.rate([one], World(spoil), Tally())[0] for one in chunk]


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    def spoil(ask: Ask) -> Answer | None:
        bad = not is_repair(ask) and "question 3" in ask.messages[0].content
        return said("?") if bad else None

    parts, rater = Tally(), JudgeRater(seat(), JUDGING)
    for some in (prompts(7)[:2], prompts(7)[2:]):
        one = Tally()
        rater.rate(some, World(spoil), one)
        parts.add(one)
    _, together = rate(World(spoil), 7)
    assert parts == together
    assert together.judge_calls == 7 * 8 + together.repaired == 7 * 8 + 8


def test_without_overall_scores_the_aspects_alone_are_asked_for_and_the_other_way_round() -> None:
    world = World()
    made, tally = rate(world, 2, replace(JUDGING, overall=False))
    assert Counter(ask.purpose for ask in world.asks) == {"aspect": 8}
    assert all(c.overall is None and len(c.ratings) == 4 for c in whole(made))
    world = World()
    made, tally = rate(world, 2, replace(JUDGING, aspects=()))
    assert Counter(ask.purpose for ask in world.asks) == {"overall": 8}
    assert all(c.overall and not c.ratings for c in whole(made))
    assert tally.ratings_asked == 8
