"""The shipped seed tasks: what they hold, their order, and strict reading."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from datetime import datetime, timedelta
from fractions import Fraction
from importlib.resources import files
from typing import Any

import pytest
from rapidfuzz.distance import LCSseq

from zephyrctl.asking.seeds import FILE_NAME, REF, SeedTask, from_package, read_task, seed_tasks
from zephyrctl.errors import IntegrityError, UsageError

TASKS = seed_tasks()
BY_ID = {task.id: task for task in TASKS}
# what self-instruct drops from machine-made tasks, so it must not be shown as an example to follow
UNWANTED = re.compile(
    r"\b(images?|graphs?|pictures?|files?|maps?|draw|plot|go to|video|audio|flowchart|diagram)\b", re.I
)


def test_there_are_about_two_hundred_of_many_kinds() -> None:
    kinds = Counter(task.kind for task in TASKS)
    assert 190 <= len(TASKS) <= 230
    assert len(BY_ID) == len(TASKS)
    assert len(kinds) >= 20
    assert min(kinds.values()) >= 5
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", kind) for kind in kinds)


def test_about_twenty_five_classify_and_name_their_labels() -> None:
    found = [task for task in TASKS if task.is_classification]
    assert 24 <= len(found) <= 30
    for task in found:
        assert task.input, task.id
        assert len(task.output.split()) <= 3, task.id
    assert [task.id for task in found if task.output.lower() not in task.instruction.lower()] == []


def test_some_have_further_turns() -> None:
    found = [task for task in TASKS if task.follow_ups]
    assert len(found) >= 15
    assert len({task.kind for task in found}) >= 10
    assert max(len(task.follow_ups) for task in found) <= 3


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_each_is_of_reasonable_length_and_of_the_sort_that_is_wanted(task: SeedTask) -> None:
    assert 3 < len(task.instruction.split()) <= 150
    assert 1 <= len(task.output.split()) <= 150
    assert not UNWANTED.search(task.instruction)
    assert task.instruction[0].isalpha() or task.instruction[0] in "¿¡"


def test_no_two_are_alike() -> None:
    split = [(task.id, re.findall(r"\w+", task.prompt.lower())) for task in TASKS]
    close = []
    for (one, left), (other, right) in itertools.combinations(split, 2):
        if 2 * LCSseq.similarity(left, right) / (len(left) + len(right)) > 0.5:
            close.append((one, other))
    assert close == []


def test_openings_vary() -> None:
    first = Counter(task.instruction.split()[0] for task in TASKS)
    assert len(first) > 100
    assert max(first.values()) <= 15


def test_any_first_part_is_as_varied_as_it_can_be() -> None:
    kinds = [task.kind for task in TASKS]
    known = set(kinds)
    assert set(kinds[: len(known)]) == known
    assert min(Counter(kinds[: 5 * len(known)]).values()) == 5


@pytest.mark.parametrize("task", [t for t in TASKS if "```python" in t.output], ids=lambda task: task.id)
def test_python_in_answers_compiles(task: SeedTask) -> None:
    for block in re.findall(r"```python\n(.*?)```", task.output, re.DOTALL):
        compile(block, task.id, "exec")


def _block(task_id: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    found = re.search(r"```python\n(.*?)```", BY_ID[task_id].output, re.DOTALL)
    assert found is not None
    exec(found.group(1), names)
    return names


def test_python_in_answers_does_what_is_asked() -> None:
    merge = _block("code-01")["merge_ranges"]
    assert merge([(5, 8), (1, 3), (2, 4)]) == [(1, 4), (5, 8)]
    assert merge([]) == []
    assert merge([(1, 9), (2, 3)]) == [(1, 9)]
    add = _block("code-05")["add_guest"]
    assert (add("Amira"), add("Tomas")) == (["Amira"], ["Tomas"])
    assert "[6, 4, 2]" in BY_ID["code-08"].output
    assert list(range(1, 7))[1::2][::-1] == [6, 4, 2]
    duplicate = _block("code-11")["has_duplicate"]
    assert duplicate([1, 2, 1])
    assert not duplicate([])
    date = re.compile(re.findall(r"`(\^.*?\$)`", BY_ID["code-07"].output)[0])
    assert all(date.match(text) for text in ("2026-03-09", "1999-12-31", "2000-10-10"))
    assert not any(date.match(text) for text in ("2026-13-01", "2026-00-10", "2026-01-32", "26-01-01"))


ORDER = [
    order
    for order in itertools.permutations(["Olga", "Pete", "Ravi", "Sara"])
    if order[2] == "Ravi" and order.index("Pete") == 3 and order[0] != "Sara"
]
AREA = 4 * 9 * 3 * 2
RIGHT = {
    "reasoning-01": (datetime(2026, 1, 1, 6, 10) + timedelta(minutes=4 * 12)).strftime("%H:%M"),
    "reasoning-02": f"{math.ceil(AREA / 60)} tins",
    "reasoning-03": next(
        f"Bo is {b} and Ines is {3 * b}" for b in range(1, 99) if 3 * b + 10 == 2 * (b + 10)
    ),
    "reasoning-04": f"{80 * 0.75 * 1.25:.0f} euros",
    "reasoning-05": ", ".join(ORDER[0]),
    "reasoning-06": str(Fraction(4, 10) * Fraction(3, 9)),
    "reasoning-07": f"{36 / (18 / 12 + 18 / 24):.0f} km/h",
    "reasoning-08": f"{round(0.2 * 300 / 0.12 - 300)} ml",
    "reasoning-09": (datetime(2026, 1, 1, 9, 40) + timedelta(hours=7 - 5, minutes=35)).strftime("%H:%M"),
    "reasoning-10": str(6 * 6 + 2),
    "reasoning-11": f"{600 // (240 // 30 + 240 // 20)} minutes",
    "reasoning-12": f"{14 * 9 - 12 * 7} m²",
    "reasoning-13": ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"][100 % 7],
    "reasoning-14": f"{1260 * 10 // 42} + {1260 * 14 // 42} + {1260 * 18 // 42} = 1,260",
    "reasoning-16": f"{7 * 24 // 6 // 6} full bags",
    "reasoning-17": f"{24 * 60 * 60 // 20:,} ml",
    "reasoning-18": f"{6 * 5} matches",
    "reasoning-19": f"{5 * 82 - (78 + 85 + 90 + 74)} points",
    "comparison-03": f"{9 + 2 * 30 * 0.30:.0f}. Rollo has no monthly fee and costs 2 × 30 × 0.55 = {2 * 30 * 0.55:.0f}",
    "factual-question-10": f"{10 * 180:,}°",
    "other-languages-05": f"Luc a {(54 - 26) // 2} ans",
}


@pytest.mark.parametrize("task_id", RIGHT)
def test_answers_that_can_be_computed_are_right(task_id: str) -> None:
    assert len(ORDER) == 1
    assert RIGHT[task_id] in BY_ID[task_id].output


def test_from_package_gives_them_as_prompts_of_the_real_world() -> None:
    seeds = from_package(None)
    raw = files("zephyrctl.asking").joinpath(FILE_NAME).read_bytes()
    assert seeds.world == "real"
    assert [(i.role, i.ref, i.kind) for i in seeds.inputs] == [("prompts", REF, "prompts")]
    assert seeds.inputs[0].digest == "sha256:" + hashlib.sha256(raw).hexdigest()
    rows = [seed.row for seed in seeds.load(seed=1, test_fraction=0.1)]
    assert [row.source for row in rows] == [f"{REF}/{task.kind}" for task in TASKS]
    assert [tuple(row.follow_ups) for row in rows] == [task.follow_ups for task in TASKS]
    with_input = next(n for n, task in enumerate(TASKS) if task.input)
    assert (
        rows[with_input].prompt[0].content == f"{TASKS[with_input].instruction}\n\n{TASKS[with_input].input}"
    )
    assert len({row.prompt_id for row in rows}) == len(rows)


def test_more_rows_contain_fewer() -> None:
    few = [seed.row.prompt_id for seed in from_package(30).load(seed=1, test_fraction=0.1)]
    more = [seed.row.prompt_id for seed in from_package(90).load(seed=7, test_fraction=0.1)]
    assert len(few) == 30
    assert more[:30] == few


def test_more_rows_than_there_are_is_said() -> None:
    with pytest.raises(UsageError, match=f"{len(TASKS)} seed tasks") as caught:
        from_package(len(TASKS) + 1)
    assert "self-instruct" in str(caught.value.hint)
    assert len(from_package(len(TASKS)).own) == len(TASKS)


GOOD: dict[str, Any] = {
    "id": "a-1", "kind": "a", "instruction": "Do this now.", "input": "", "output": "Done.",
    "is_classification": False, "follow_ups": ["And then?"],
}  # fmt: skip


def test_a_good_line_is_read() -> None:
    assert read_task(json.dumps(GOOD), "x:1") == SeedTask(
        "a-1", "a", "Do this now.", "", "Done.", False, ("And then?",)
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[]", "keys"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "input"}), "keys"),
        (json.dumps({**GOOD, "more": 1}), "keys"),
        (json.dumps({**GOOD, "output": ""}), "output"),
        (json.dumps({**GOOD, "output": 5}), "output"),
        (json.dumps({**GOOD, "instruction": " Do this "}), "instruction"),
        (json.dumps({**GOOD, "is_classification": 1}), "is_classification"),
        (json.dumps({**GOOD, "follow_ups": "And?"}), "follow_ups"),
        (json.dumps({**GOOD, "follow_ups": [" "]}), "follow_ups"),
    ],
)
def test_a_damaged_line_is_named(line: str, why: str) -> None:
    with pytest.raises(IntegrityError, match=f"seeds:7: .*{why}"):
        read_task(line, "seeds:7")
