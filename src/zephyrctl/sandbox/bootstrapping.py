"""The sandbox's teacher makes up tasks: what `gen-sft --method self-instruct` asks, read from the text alone.

It makes up tasks as real teachers do: most are new, some are copies or near copies of those it was shown, a few are too
short or ask for what text cannot do. Its instances are exactly right, or wrong with the role's error rate.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from zephyrctl.quote import split_blocks
from zephyrctl.sandbox import world
from zephyrctl.sandbox.families import FAMILIES, Family

_WANTED = re.compile(r"^Think of (\d+) more tasks, numbered from (\d+) to \d+\.", re.MULTILINE)
_SHOWN = re.compile(r"^\d+\. (.+)$", re.MULTILINE)
_COUNT = re.compile(r"Write (\d+) examples")
_CLASSES = "kind"
"""The family whose answers are labels."""
_NO_EXERCISE = "That is no exercise that I know."
_BAD = (
    "Sort some words.",
    "Draw a picture of a cat beside a lamp.",
    "Write a program that adds two numbers.",
    "(none of the tasks above comes to mind)",
)


def respond(messages: Sequence[Mapping[str, str]], error_rate: float, rng: random.Random) -> str | None:
    """The reply to a request for tasks, their kind or their instances; None for any other text."""
    asked = [message.get("content", "") for message in messages if message.get("role") == "user"]
    if not asked:
        return None
    wanted = _WANTED.search(asked[-1])
    if wanted:
        shown = _SHOWN.findall(asked[-1][: wanted.start()])
        return _tasks(shown, int(wanted[1]), int(wanted[2]), rng)
    blocks, frame = split_blocks(asked[-1])
    tasks = [text for name, text in blocks.items() if name.startswith("TASK ")]
    if tasks and "Reply with yes or no" in frame:
        return _kind(tasks[-1], rng)
    if tasks and "[[INPUT]]" in frame:
        found = _COUNT.search(frame)
        count, label_first = int(found[1]) if found else 1, "[[LABEL]]" in frame
        return _instances(tasks[-1], count, error_rate, rng, label_first=label_first)
    return None


def _tasks(shown: Sequence[str], count: int, first: int, rng: random.Random) -> str:
    return "\n".join(f"{number}. {_task(shown, rng)}" for number in range(first, first + count))


def _task(shown: Sequence[str], rng: random.Random) -> str:
    choice = rng.random()
    if choice < 0.05:
        return rng.choice(_BAD)
    if choice < 0.1 and shown:
        return rng.choice(shown)
    if choice < 0.2 and shown:
        return _near(rng.choice(shown), rng)
    family = rng.choice(FAMILIES)
    openings = _openings(family)
    if choice < 0.35 and openings:
        return rng.choice(openings)
    return _fresh(family, rng)


def _near(task: str, rng: random.Random) -> str:
    """The same family with other words, or the task in another case where it is not of this world."""
    reading = world.read((task,))
    return task.upper() if reading is None else _fresh(reading.family, rng)


def _fresh(family: Family, rng: random.Random) -> str:
    while True:
        text = rng.choice(family.wordings).format(**family.sample(rng))
        if not world.is_eval((text,)) and world.solve((text,)) is not None:
            return text


def _openings(family: Family) -> list[str]:
    """Wordings that end with what they are about, without it: instructions that need an input."""
    cut = [(wording, re.search(r": \{(?:words|numbers)\}\??$", wording)) for wording in family.wordings]
    return [
        wording[: found.start() + 1]
        for wording, found in cut
        if found and "{" not in wording[: found.start()]
    ]


def _family_of(task: str) -> Family | None:
    reading = world.read((task,))
    if reading is not None:
        return reading.family
    return next((family for family in FAMILIES if task in _openings(family)), None)


def _kind(task: str, rng: random.Random) -> str:
    if rng.random() < 0.03:
        return "It depends on the input."
    family = _family_of(task)
    return "Yes" if family is not None and family.name == _CLASSES else "No"


def _instances(task: str, count: int, error_rate: float, rng: random.Random, *, label_first: bool) -> str:
    family = _family_of(task)
    if family is None:
        return _NO_EXERCISE
    count = 1 if world.read((task,)) else count
    whole = [_instance(task, family, error_rate, rng, label_first=label_first) for _ in range(count)]
    return "\n".join(whole)


def _instance(task: str, family: Family, error_rate: float, rng: random.Random, *, label_first: bool) -> str:
    given = "none" if world.read((task,)) else _input(task, family, rng)
    asked = task if given == "none" else f"{task} {given}"
    right = world.solve((asked,)) or ""
    output = world.wrong_answer((asked,), rng) if rng.random() < error_rate else right
    if rng.random() < 0.02:
        output = ""
    order = (("LABEL", output), ("INPUT", given)) if label_first else (("INPUT", given), ("OUTPUT", output))
    return "\n".join([f"[[{name}]]\n{text}" for name, text in order] + ["[[END]]"])


def _input(task: str, family: Family, rng: random.Random) -> str:
    """Something for an instruction that needs an input, never of the eval side."""
    while True:
        slots = family.sample(rng)
        given = slots.get("words") or slots["numbers"]
        if not world.is_eval((f"{task} {given}",)) and world.solve((f"{task} {given}",)) is not None:
            return given
