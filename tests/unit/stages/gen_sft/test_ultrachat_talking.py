"""Dialogues held turn by turn: their length, how they end, what becomes of trouble, and counts that add up."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.curation.pipeline import make_pipeline
from zephyrctl.events import Recorder, Table
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.base import UNPAID, Answer, Failure, Outcome, Sampling
from zephyrctl.providers.sandbox import SandboxProvider
from zephyrctl.quote import split_blocks
from zephyrctl.records import SftRow, prompt_id, split_of
from zephyrctl.stages.gen_sft.screen import Screen
from zephyrctl.stages.gen_sft.ultrachat.calls import draw
from zephyrctl.stages.gen_sft.ultrachat.gathering import Gathering
from zephyrctl.stages.gen_sft.ultrachat.merge import as_entry, of_entry
from zephyrctl.stages.gen_sft.ultrachat.plan import Slot, slots_of
from zephyrctl.stages.gen_sft.ultrachat.requests import END
from zephyrctl.stages.gen_sft.ultrachat.talking import Host, Request, Talk


def answer(text: str, outcome: Outcome = "text") -> Answer:
    return Answer(text, outcome, "stop", "m", None, "k", False)


def failure(reason: str = "server_error") -> Failure:
    return Failure(reason, "500", "k")


class Teacher:
    """Names subtopics `t/0`, `t/1` … and openings `t/0: 0` …; says `re: x`, asks `more k`. `special` changes replies by
    the text of the last block or message."""

    def __init__(self, special: dict[str, Answer | Failure] | None = None) -> None:
        self.special = special or {}
        self.asked: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.may_end: dict[str, bool] = {}

    def __call__(self, requests: Sequence[Request], purpose: str, task: str) -> list[Answer | Failure]:
        self.asked[purpose] += len(requests)
        self.written[purpose] += sum(len(m.content) for said, _ in requests for m in said)
        return [self.reply(said[-1].content, number, purpose) for said, number in requests]

    def reply(self, text: str, number: int, purpose: str) -> Answer | Failure:
        blocks, frame = split_blocks(text)
        if purpose == "answer":
            return self.special.get(text, answer(f"re: {text}"))
        last = list(blocks.values())[-1]
        if purpose == "user turn":
            self.may_end[last] = END in frame
            return self.special.get(f"after {last}", answer(f"more {blocks['USER 1']} {len(blocks)}"))
        count = int(re.findall(r"list of (\d+) lines", frame)[0])
        again = f"#{number}" if number else ""
        joined = "/" if purpose == "subtopics" else ": "
        items = [f"{n + 1}. {last}{again}{joined}{n}" for n in range(count)]
        return self.special.get(f"{purpose} of {last}", answer("\n".join(items)))


def held(slots: Sequence[Slot], teacher: Teacher, turns: tuple[int, int] = (2, 4)) -> list[Talk]:
    return Host(teacher, turns, 42).hold(slots)


def gathered(talks: Sequence[Talk]) -> tuple[list[SftRow], Gathering]:
    gathering = Gathering("teacher", test_fraction=0.3, screen=Screen(make_pipeline([])))
    rows = []
    for talk in talks:
        split, found = gathering.take(talk)
        rows += found
        assert all(split == split_of(row.prompt_id, 0.3) for row in found)
    counts = gathering.counts()
    assert counts["dialogues"] == len(talks) == counts["kept"] + sum(counts["dropped"].values())
    assert len(rows) == counts["kept"] + counts.get("further_parts", 0)
    return rows, gathering


def test_dialogues_have_the_drawn_number_of_rounds_and_both_parts_in_turn() -> None:
    talks = held(slots_of(["a", "b"], 40, 1), Teacher(), (2, 7))
    assert {talk.rounds for talk in talks} == set(range(2, 8))
    for talk in talks:
        assert [m.role for m in talk.said] == ["user", "assistant"] * talk.rounds
        assert talk.trouble is None
    rows, _ = gathered(talks)
    assert len({row.row_id for row in rows}) == 40
    row, first = rows[0], talks[0].said[:1]
    assert row.seed_id == row.prompt_id == prompt_id(first)
    assert row.source in ("ultrachat/a", "ultrachat/b")
    assert row.messages[0].content == f"{row.source[-1]}/0: 0"


def test_each_list_is_asked_for_once() -> None:
    teacher = Teacher()
    held(slots_of(["a", "b", "c"], 45, 1), teacher, (1, 1))
    assert teacher.asked == {"subtopics": 3, "questions": 5, "answer": 45}


def test_the_user_may_end_it_once_the_fewest_rounds_are_held() -> None:
    (slot,) = slots_of(["a"], 1, 1)
    for reply, how in ((END, "mark"), ("Thanks, bye!", "farewell")):
        teacher = Teacher({"after re: more a/0: 0 4": answer(reply)})
        (talk,) = held([slot], teacher, (2, 2))
        assert (talk.rounds, talk.ended) == (2, "")
        (talk,) = held([slot], teacher, (1, 5))
        assert (talk.rounds, talk.ended) in ((2, how), (1, ""))
        (talk,) = held([slot], teacher, (2, 7))
        rounds, ended = talk.rounds, talk.ended
        assert (rounds, ended) == (2, how)
        assert teacher.may_end["re: a/0: 0"] is False
        assert teacher.may_end["re: more a/0: 0 4"] is True


def test_a_dialogue_ended_too_early_is_dropped() -> None:
    (slot,) = slots_of(["a"], 1, 1)
    (talk,) = held([slot], Teacher({"after re: a/0: 0": answer(END)}), (3, 5))
    rows, gathering = gathered([talk])
    assert (rows, gathering.dropped()) == ([], {"too_short": 1})
    assert "after 1 rounds, 3 are the fewest" in next(iter(gathering.reject_rows()))["detail"]


@pytest.mark.parametrize(
    ("special", "dropped"),
    [
        ({"subtopics of a": failure()}, {"failed": 15}),
        ({"subtopics of a": answer("half a li", "length")}, {"cut_off": 15}),
        ({"subtopics of a": answer("I would rather not.")}, {"no_subtopic": 15}),
        ({"subtopics of a": answer("1. one\n2. one")}, {"no_subtopic": 5}),
        ({"questions of a/1": answer("1. What?\n2. Why?")}, {"no_opening": 3}),
        ({"questions of a/0": failure()}, {"failed": 10}),
        ({"questions of a/1": answer("1. a/0: 3\n2. A/0, 4!\n3. new\n4. x\n5. y")}, {"duplicate": 2}),
        ({"a/0: 2": answer("no", "refusal")}, {"refusal": 1}),
        ({"a/0: 2": answer(" ")}, {"empty": 1}),
        ({"after re: a/0: 2": failure()}, {"failed": 1}),
        ({"more a/0: 2 4": answer("half", "length")}, {"cut_off": 1}),
    ],
)
def test_what_could_not_be_held_is_counted_with_its_reason(
    special: dict[str, Answer | Failure], dropped: dict[str, int]
) -> None:
    rows, gathering = gathered(held(slots_of(["a"], 15, 1), Teacher(special)))
    assert gathering.dropped() == dropped
    assert len(rows) == 15 - sum(dropped.values())


def test_an_opening_that_an_earlier_dialogue_here_has_is_not_paid_for() -> None:
    teacher = Teacher({"questions of a/1": answer("1. a/0: 3\n2. new")})
    talks = held(slots_of(["a"], 12, 1), teacher, (1, 1))
    assert teacher.asked["answer"] == 11
    assert [talk.trouble and talk.trouble[0] for talk in talks[10:]] == ["duplicate", None]


OUTCOMES = st.sampled_from(["ok", "fail", "unpaid", "end", "blank", "same"])


@given(st.dictionaries(st.integers(0, 30), OUTCOMES, max_size=12), st.integers(0, 25), st.integers(1, 4))
@settings(max_examples=60)
def test_neither_chunks_nor_later_places_change_a_dialogue(
    outcomes: dict[int, str], cut: int, low: int
) -> None:
    replies: dict[str, Answer | Failure] = {
        "fail": failure(), "unpaid": failure(UNPAID), "end": answer(END), "blank": answer(" ")
    }  # fmt: skip
    special: dict[str, Answer | Failure] = {}
    for number, outcome in outcomes.items():
        opening = f"a/{number // 10}: {number % 10}"
        if outcome in replies:
            special[opening if number % 2 else f"after re: {opening}"] = replies[outcome]
        if outcome == "same":
            special["questions of a/1"] = answer("\n".join(f"{n}. a/0: {n}" for n in range(10)))
    slots = slots_of(["a"], 25, 1)
    turns = (low, low + 2)
    whole, gathering = gathered(held(slots, Teacher(special), turns))
    pieces, _ = gathered(
        [*held(slots[:cut], Teacher(special), turns), *held(slots[cut:], Teacher(special), turns)]
    )
    assert pieces == whole
    first, _ = gathered(held(slots[:cut], Teacher(special), turns))
    assert whole[: len(first)] == first
    assert gathering.finished == 25 - gathering.dropped()[UNPAID]


def test_a_part_notes_dialogues_so_that_they_can_be_read_back() -> None:
    special: dict[str, Answer | Failure] = {"a/0: 2": failure(), "after re: a/0: 3": answer(END)}
    for talk in held(slots_of(["a"], 8, 1), Teacher(special), (1, 3)):
        assert of_entry({"position": talk.slot.number, **as_entry(talk)}) == talk


def test_how_long_dialogues_are_is_told() -> None:
    _, gathering = gathered(held(slots_of(["a", "b"], 12, 1), Teacher(), (2, 2)))
    told = Recorder()
    assert gathering.tell(told) == {"topics": 2, "rounds": {"2": 12}, "ended_by_the_user": {}}
    assert [e.rows for e in told.events if isinstance(e, Table)] == [(("2", "12"),)]


SEAT = Seat(parse_model("sandbox"), SandboxProvider("teacher"))


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=40)
def test_the_calls_that_are_planned_bound_those_that_are_made(rows: int, low: int, more: int) -> None:
    slots, turns = slots_of(["a", "b", "c"], rows, 1), (low, low + more)
    teacher = Teacher()
    held(slots, teacher, turns)
    sketch = Sketch()
    draw(sketch, slots, SEAT, turns, Sampling(max_tokens=64))
    planned: dict[str, Any] = {part.purpose: part for part in sketch.parts}
    made = {purpose: n for purpose, n in teacher.asked.items() if n}
    for purpose, calls in made.items():
        assert calls <= planned[purpose].most
        if purpose in ("subtopics", "questions") or more == 0:
            assert calls == planned[purpose].calls
        if purpose in ("subtopics", "questions"):
            assert planned[purpose].prompt_tokens.high >= teacher.written[purpose] / 4
    assert made.keys() <= planned.keys()
