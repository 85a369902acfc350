"""The sandbox's teacher as planner and as user of ultrachat's dialogues."""

import random
from collections import Counter

from zephyrctl.records import Message
from zephyrctl.sandbox import teacher, world
from zephyrctl.sandbox.conversing import respond
from zephyrctl.stages.gen_sft.ultrachat.lists import read_list
from zephyrctl.stages.gen_sft.ultrachat.plan import QUESTIONS, SUBTOPICS
from zephyrctl.stages.gen_sft.ultrachat.requests import (
    questions_request,
    read_turn,
    subtopics_request,
    user_request,
)


def said_to(message: Message, seed: int = 0) -> str:
    reply = respond([message.model_dump()], random.Random(seed))
    assert reply is not None
    return reply


def talk(*turns: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(role=roles[n % 2], content=text) for n, text in enumerate(turns)]  # type: ignore[arg-type]


def test_lists_are_about_as_long_as_asked_for_and_their_items_differ() -> None:
    lengths: Counter[int] = Counter()
    for seed in range(60):
        found = read_list(said_to(subtopics_request("Cooking"), seed))
        lengths[SUBTOPICS - len(found.items)] += 1
        assert not found.unusable
    assert lengths[0] > 40
    assert max(lengths) <= 3


def test_opening_messages_are_tasks_of_the_train_side() -> None:
    for subtopic in ("Exercises of the kind 'sort' about a tool", "Bread"):
        for seed in range(20):
            items = read_list(said_to(questions_request("Cooking", subtopic), seed)).items
            assert len(items) >= QUESTIONS - 3
            for item in items:
                assert world.solve((item,)) is not None
                assert not world.is_eval((item,))
                if "'sort'" in subtopic:
                    reading = world.read((item,))
                    assert reading is not None
                    assert reading.family.name == "sort"


def test_the_user_follows_up_sets_tasks_and_ends_only_where_it_may() -> None:
    said = talk("Sort these words: pear fig apple", "apple fig pear")
    ends = follows = 0
    for seed in range(200):
        turn = read_turn(said_to(user_request("a", "b", said, may_end=seed % 2 == 0), seed))
        if turn.text is None:
            ends += 1
            assert seed % 2 == 0
            continue
        assert world.solve([said[0].content, turn.text]) is not None
        follows += world.solve([turn.text]) is None
    assert 2 <= ends <= 30
    assert 60 <= follows <= 160


def test_other_requests_are_not_taken_for_a_dialogue() -> None:
    for text in ("Sort these words: pear fig", "Give me a numbered list of 4 lines, please."):
        assert respond([{"role": "user", "content": text}], random.Random(1)) is None
    assert respond([], random.Random(1)) is None
    assert respond([{"role": "system", "content": "x"}], random.Random(1)) is None


def test_the_teacher_answers_planning_requests_the_same_every_time() -> None:
    messages = [subtopics_request("Cooking").model_dump()]
    one, two = (teacher.reply("teacher", messages, draw=0, seed=1, temperature=0.7) for _ in range(2))
    other = teacher.reply("teacher", messages, draw=1, seed=1, temperature=0.7)
    assert one == two != other
