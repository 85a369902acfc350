"""The sandbox's teacher makes up tasks, says their kind and writes instances, from the text it is sent alone."""

import random

import pytest

from zephyrctl.asking.seeds import SeedTask
from zephyrctl.sandbox import bootstrapping, teacher, world
from zephyrctl.stages.gen_sft.self_instruct.reading import read_instances, read_kind, split_tasks, unusable
from zephyrctl.stages.gen_sft.self_instruct.requests import WANTED, Examples, tasks_request

EXAMPLES = Examples(
    [SeedTask("a", "k", "Is it tea?", "cup", "tea", True), SeedTask("b", "k", "Say b", "", "b", False)]
)
SHOWN = ["Add 12 and 3.", "Sort these words: fig pear cat", "A task of another world"]


def replies(text: str, times: int, temperature: float = 1.0) -> list[str]:
    messages = [{"role": "user", "content": text}]
    return [teacher.reply("teacher", messages, draw=n, seed=1, temperature=temperature) for n in range(times)]


def test_tasks_come_as_the_list_asked_for_and_only_some_are_bad() -> None:
    request = tasks_request(SHOWN)
    lists = [split_tasks(text) for text in replies(request, 60)]
    assert {len(tasks) for tasks in lists} == {WANTED}
    assert all(text.startswith("4. ") for text in replies(request, 3))
    tasks = [task for tasks in lists for task in tasks]
    bad = sum(unusable(task) is not None for task in tasks) / len(tasks)
    copies = sum(task in SHOWN for task in tasks) / len(tasks)
    assert 0.01 < bad < 0.2
    assert 0.01 < copies < 0.2
    assert any(world.read((task,)) is None and task.endswith(":") for task in tasks)
    assert not any(world.is_eval((task,)) for task in tasks if task not in SHOWN)


def test_a_kind_is_told_from_the_task() -> None:
    asked = {"Name the category of each word: cat": "Yes", "Add 12 and 3.": "No", "What is love?": "No"}
    for task, expected in asked.items():
        said = replies(EXAMPLES.kind_request(task), 40)
        assert said.count(expected) > 30
    assert {read_kind(text) for text in replies(EXAMPLES.kind_request("Add 2 and 3."), 400)} == {
        "other",
        "unclear",
    }


@pytest.mark.parametrize(
    ("task", "classification"),
    [
        ("Add 12 and 3.", False),
        ("Put these words in alphabetical order:", False),
        ("Name the category of each word:", True),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_instances_are_right_or_wrong_at_the_error_rate(task: str, classification: bool, count: int) -> None:
    request = EXAMPLES.instances_request(task, count, classification=classification)
    grades = []
    for text in replies(request, 150):
        found = read_instances(text, classification=classification, cut=False, most=count)
        assert len(found) == (count if task.endswith(":") else 1)
        for one in found:
            if not one.reason:
                asked = f"{task}\n\n{one.given}" if one.given else task
                assert not world.is_eval((asked,)) or asked == task
                grades.append(world.grade((asked,), one.output))
    rate = 1 - sum(grades) / len(grades)
    assert 0.15 < rate < 0.5


def test_at_temperature_zero_every_draw_is_the_same() -> None:
    request = EXAMPLES.instances_request("Add 12 and 3.", 1, classification=False)
    assert len(set(replies(request, 5, temperature=0.0))) == 1


def test_a_task_of_another_world_has_no_instances() -> None:
    text = replies(EXAMPLES.instances_request("What is love?", 1, classification=False), 1)[0]
    assert read_instances(text, classification=False, cut=False, most=1) == []


@pytest.mark.parametrize("text", ["", "Add 3 and 4.", "Think of 8 more tasks", "<<<TASK 1 0123abcd>>>\nx"])
def test_any_other_text_is_left_to_others(text: str) -> None:
    assert bootstrapping.respond([{"role": "user", "content": text}], 0.3, random.Random(1)) is None
    assert bootstrapping.respond([], 0.3, random.Random(1)) is None
