"""Pools of tasks grow in waves: the same whatever the number of tasks wanted, the other islands and what fails."""

import hashlib
import random
import re
from collections.abc import Sequence

import pytest

from zephyrctl.providers.base import UNPAID, Answer, Failure, Outcome
from zephyrctl.stages.gen_sft.self_instruct.instances import finish
from zephyrctl.stages.gen_sft.self_instruct.islands import (
    FIRST_WAVE,
    SHOWN,
    SHOWN_MADE,
    STALLED_WAVES,
    AskAll,
    Island,
    Rules,
    Task,
    grow,
    in_turn,
    sift,
)
from zephyrctl.stages.gen_sft.self_instruct.requests import Examples

SEEDS = tuple(f"Seed number {n} about {word}" for n, word in enumerate(["tea", "rain", "maps of Oslo"] * 5))
WORDS = [f"word{n}" for n in range(400)]


def rules(target: int, **changed: object) -> Rules:
    body = {"seeds": SEEDS, "target": target, "novelty": 0.7, "seed": 7} | changed
    return Rules(**body)  # type: ignore[arg-type]


def answer(text: str, outcome: Outcome = "text") -> Answer:
    return Answer(text, outcome, "stop", "teacher", None, "key", False)


def numbered(*tasks: str) -> str:
    return "\n".join(f"{number}. {task}" for number, task in enumerate(tasks, 9))


def made_up(request: str) -> str:
    """Eight tasks that depend on the request's text alone, some of them no good."""
    rng = random.Random(int(hashlib.sha256(request.encode()).hexdigest()[:8], 16))
    tasks = [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) for _ in range(7)]
    return numbered(*tasks, "Draw a map of the town")


def teacher(requests: Sequence[str], purpose: str, task: str) -> list[Answer | Failure]:
    return [answer(made_up(request)) for request in requests]


class Teacher:
    """Notes what it is asked, and replies as it is told."""

    def __init__(self, reply: str | Answer | Failure | None = None) -> None:
        self.waves: list[list[str]] = []
        self.reply = reply

    def __call__(self, requests: Sequence[str], purpose: str, task: str) -> list[Answer | Failure]:
        self.waves.append(list(requests))
        if self.reply is None:
            return teacher(requests, purpose, task)
        reply = answer(self.reply) if isinstance(self.reply, str) else self.reply
        return [reply for _ in requests]


def one(target: int, ask: AskAll = teacher, **changed: object) -> Island:
    (island,) = grow([0], rules(target, **changed), ask)
    return island


def texts(island: Island) -> list[str]:
    return [task.instruction for task in island.tasks]


def check_sums(island: Island) -> None:
    assert island.asked == island.answered + len(island.failures)
    assert island.proposed == len(island.tasks) + len(island.rejects)


@pytest.mark.parametrize(("few", "many"), [(1, 5), (20, 21), (30, 200)])
def test_more_tasks_begin_with_the_same_ones(few: int, many: int) -> None:
    small, large = one(few), one(many)
    assert (len(small.tasks), len(large.tasks)) == (few, many)
    assert texts(large)[:few] == texts(small)
    check_sums(small)
    check_sums(large)


def test_an_island_does_not_know_of_the_others() -> None:
    together = grow([0, 1, 2], rules(25), teacher)
    assert [texts(island) for island in together] == [
        texts(grow([index], rules(25), teacher)[0]) for index in range(3)
    ]
    assert len({tuple(texts(island)) for island in together}) == 3


def test_all_islands_ask_in_one_wave() -> None:
    asking = Teacher()
    grow([0, 1, 2], rules(10), asking)
    assert len(asking.waves[0]) == 3 * FIRST_WAVE


def test_a_request_shows_two_made_tasks_and_six_seeds() -> None:
    asking = Teacher()
    one(30, asking)
    for number, wave in enumerate(asking.waves):
        for request in wave:
            shown = re.findall(r"^\d+\. (.+)$", request.partition("Think of")[0], re.MULTILINE)
            seeds = [task for task in shown if task in SEEDS]
            made = [task for task in shown if task not in SEEDS]
            assert len(shown) == len(set(shown)) == SHOWN
            assert len(made) == (SHOWN_MADE if number else 0)
            assert len(seeds) == SHOWN - len(made)
    orders = [request.partition("Think of")[0] for wave in asking.waves for request in wave]
    assert len(set(orders)) == len(orders)


def test_few_seeds_are_all_shown() -> None:
    asking = Teacher()
    one(3, asking, seeds=("The only seed there is",))
    assert "1. The only seed there is\n\n" in asking.waves[0][0]


def test_the_pool_is_frozen_while_a_wave_is_asked() -> None:
    """Requests of a wave show only what earlier waves made, whatever the replies of their own wave."""
    asking = Teacher()
    island = one(60, asking)
    wave_of = {task.instruction: int(task.where.split("wave ")[1].split(",")[0]) for task in island.tasks}
    for number, wave in enumerate(asking.waves, 1):
        for request in wave:
            assert all(made_in < number for task, made_in in wave_of.items() if f". {task}\n" in request)


def test_case_is_kept() -> None:
    """Trap `capitalize`."""
    island = one(1, Teacher(numbered("write a Python function for NASA in C++")))
    assert texts(island) == ["write a Python function for NASA in C++"]


def test_what_is_not_new_is_dropped_with_what_it_is_near_to() -> None:
    reply = numbered(
        "Name four large rivers of Europe",
        "name four large rivers of europe!",
        "Name four large rivers of Asia",
        "Seed number 0 about tea",
        "谈谈你对长江的看法和感受",
        "谈谈你对长江的看法和感受",
    )
    island = one(100, Teacher(reply))
    assert texts(island) == ["Name four large rivers of Europe", "谈谈你对长江的看法和感受"]
    first = [reject for reject in island.rejects if reject.where.startswith("island 1, wave 1, request 1,")]
    assert [(reject.where[-6:], reject.reason) for reject in first] == [
        ("task 2", "similar"), ("task 3", "similar"), ("task 4", "duplicate"), ("task 6", "duplicate"),
    ]  # fmt: skip
    assert first[0].detail == "ROUGE-L 1.000 with: Name four large rivers of Europe"
    assert first[0].said == {"instruction": "name four large rivers of europe!"}


def test_an_island_that_brings_nothing_new_stops() -> None:
    asking = Teacher(numbered("Name four large rivers of Europe"))
    island = one(100, asking)
    assert (island.ending, len(island.tasks)) == ("stalled", 1)
    assert len(asking.waves) == 1 + STALLED_WAVES
    check_sums(island)


def test_of_a_reply_that_was_cut_off_only_the_unfinished_task_is_lost() -> None:
    whole = numbered("Name four large rivers of Europe", "Explain to a child why it rains", "Tell me about")
    island = one(2, Teacher(answer(whole, "length")))
    assert texts(island) == ["Name four large rivers of Europe", "Explain to a child why it rains"]
    assert island.rejects[0].reason == "unfinished"
    assert (island.asked, island.answered) == (FIRST_WAVE, FIRST_WAVE)
    check_sums(island)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (answer("", "refusal"), "refusal"),
        (answer("", "filtered"), "filtered"),
        (answer("I would rather not."), "unreadable"),
        (answer("no number and then", "length"), "cut_off"),
        (Failure("timeout", "600 s", "key"), "failed"),
    ],
)
def test_a_reply_without_tasks_is_a_failure_with_its_reason(reply: Answer | Failure, reason: str) -> None:
    island = one(5, Teacher(reply))
    assert island.ending == "stalled"
    assert {reject.reason for reject in island.failures} == {reason}
    assert (island.asked, island.answered, island.proposed) == (FIRST_WAVE * STALLED_WAVES, 0, 0)
    check_sums(island)


def test_an_island_ends_where_replies_are_not_paid_for() -> None:
    calls = 0

    def replayed(requests: Sequence[str], purpose: str, task: str) -> list[Answer | Failure]:
        nonlocal calls
        replies = teacher(requests, purpose, task)
        calls += 1
        if calls == 2:
            replies[1] = Failure(UNPAID, "", "key")
        return replies

    partial = one(200, replayed)
    assert (partial.ending, calls, partial.asked) == ("unpaid", 2, FIRST_WAVE + 1)
    assert texts(partial) == texts(one(200))[: len(partial.tasks)]
    check_sums(partial)


def islands(*tasks: Sequence[str]) -> list[Island]:
    return [
        Island(index, [Task(text, f"island {index + 1}") for text in each])
        for index, each in enumerate(tasks)
    ]


def test_islands_are_sifted_in_turn() -> None:
    found = islands(
        ["one two three four", "alpha beta gamma delta"],
        ["Alpha beta gamma delta!", "一二三四", "five six seven eight"],
        ["one two three nine", "一二三四"],
    )
    assert [task.where[-1] for task in in_turn(found)] == ["1", "2", "3", "1", "2", "3", "2"]
    kept, rejects = sift(found, 0.7, 9)
    assert [task.instruction for task in kept] == [
        "one two three four", "Alpha beta gamma delta!", "一二三四", "five six seven eight",
    ]  # fmt: skip
    assert [(reject.where[-1], reject.reason) for reject in rejects] == [
        ("3", "similar"), ("1", "similar"), ("3", "duplicate"),
    ]  # fmt: skip


def test_no_more_tasks_are_taken_from_islands_than_wanted() -> None:
    found = islands(
        ["one two three four", "alpha beta gamma delta"], ["one two three nine", "five six seven"]
    )
    kept, rejects = sift(found, 0.7, 2)
    assert [task.instruction for task in kept] == ["one two three four", "alpha beta gamma delta"]
    assert [reject.reason for reject in rejects] == ["similar", "surplus"]


def test_kind_then_instances_are_asked_and_noted() -> None:
    seen: list[tuple[str, str]] = []

    def ask(requests: Sequence[str], purpose: str, task: str) -> list[Answer | Failure]:
        seen.extend((purpose, "label first" if "[[LABEL]]" in text else "") for text in requests)
        if purpose == "instances":
            return [answer("cut", "length"), answer("whole"), answer("", "refusal")]
        return [answer("Yes"), answer("Hm"), Failure(UNPAID, "", "k"), Failure("timeout", "", "k")]

    tasks = [Task(f"task {n}", "") for n in range(4)]
    finish(tasks, Examples([]), 1, ask)
    assert [task.kind for task in tasks] == ["classification", "unclear", None, "unclear"]
    assert [(task.reply, task.cut) for task in tasks] == [
        ("cut", True),
        ("whole", False),
        (None, False),
        (None, False),
    ]
    assert [task.trouble and task.trouble[0] for task in tasks] == [None, None, UNPAID, "refusal"]
    assert seen[4:] == [("instances", "label first"), ("instances", ""), ("instances", "")]
