"""The sandbox's teacher plays the user: what `gen-sft --method ultrachat` asks, read from the text alone.

Whatever the topic, its subtopics are exercises of the sandbox, its opening messages are tasks, and its further turns
follow up on the last answer or set another task; all of the train side. As real teachers do, it at times puts a
sentence in front of a list, repeats an item, falls short of the number asked for, and ends a conversation early.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence

from zephyrctl.quote import split_blocks
from zephyrctl.sandbox import world
from zephyrctl.sandbox.families import BY_NAME, FAMILIES, LINKS, Family
from zephyrctl.sandbox.lexicon import KINDS

_LIST = re.compile(r"a numbered list of (\d+) lines")
_USER_TURN = "Reply with the user's next message"
_END = re.compile(r"reply with (\S+) alone")
_PREAMBLE = "Here is the list:\n\n"
_PREAMBLE_RATE, _REPEAT_RATE, _SHORT_RATE, _END_RATE, _FAREWELL_RATE, _FOLLOW_RATE = (
    0.2,
    0.03,
    0.02,
    0.1,
    0.02,
    0.6,
)


def respond(messages: Sequence[Mapping[str, str]], rng: random.Random) -> str | None:
    """The reply to a request for subtopics, questions or the user's next turn; None for any other text."""
    asked = [message.get("content", "") for message in messages if message.get("role") == "user"]
    if not asked:
        return None
    blocks, frame = split_blocks(asked[-1])
    wanted = _LIST.search(frame)
    if wanted and "SUBTOPIC" in blocks:
        return _list(_openings(blocks["SUBTOPIC"], rng), int(wanted[1]), rng)
    if wanted and "TOPIC" in blocks:
        return _list(_subtopics(rng), int(wanted[1]), rng)
    if _USER_TURN in frame and "USER 1" in blocks:
        turns = [text for name, text in blocks.items() if name.startswith("USER ")]
        return _user_turn(turns, _END.search(frame), rng)
    return None


def _list(items: Iterator[str], count: int, rng: random.Random) -> str:
    """A numbered list of `count` different items, at times not quite."""
    chosen = list(dict.fromkeys(next(items) for _ in range(2 * count)))[:count]
    if rng.random() < _SHORT_RATE:
        chosen.pop()
    if rng.random() < _REPEAT_RATE:
        chosen[-1] = chosen[0]
    lines = "\n".join(f"{number}. {item}" for number, item in enumerate(chosen, start=1))
    return _PREAMBLE + lines if rng.random() < _PREAMBLE_RATE else lines


def _subtopics(rng: random.Random) -> Iterator[str]:
    while True:
        yield f"Exercises of the kind '{rng.choice(FAMILIES).name}' about a {rng.choice(list(KINDS))}"


def _openings(subtopic: str, rng: random.Random) -> Iterator[str]:
    named = re.search(r"'(\w+)'", subtopic)
    family = BY_NAME.get(named[1]) if named else None
    while True:
        yield _task(family or rng.choice(FAMILIES), rng)


def _user_turn(turns: Sequence[str], end: re.Match[str] | None, rng: random.Random) -> str:
    choice = rng.random()
    if end and choice < _END_RATE:
        return end[1]
    if end and choice < _END_RATE + _FAREWELL_RATE:
        return "Thank you very much for your help!"
    reading = world.read(turns)
    if reading is not None and reading.family.links and rng.random() < _FOLLOW_RATE:
        text = world.follow_up(LINKS[rng.choice(reading.family.links)], rng)
        if world.solve([*turns, text]) is not None:
            return text
    return _task(rng.choice(FAMILIES), rng)


def _task(family: Family, rng: random.Random) -> str:
    """An instruction of the train side that has an answer."""
    while True:
        text = world.draw_task(family, rng).turns[0]
        if not world.is_eval((text,)) and world.solve((text,)) is not None:
            return text
