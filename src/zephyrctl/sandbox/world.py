"""The sandbox world: tasks, their right answers, exact grading, and a train/eval split made on what is asked.

Pure and small: everything is decided by reading text. A task belongs to the eval side when the sha256 of
its content (the family and what it is about, not its wording) is 0 modulo 8; a follow-up turn takes the
side of the turn before.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zephyrctl.sandbox import answers
from zephyrctl.sandbox.families import (
    BY_NAME,
    FAMILIES,
    LINKS,
    Answer,
    Family,
    Link,
    Slots,
)
from zephyrctl.sandbox.lexicon import KIND_OF, KINDS, NOUNS, OPPOSITE_OF

_EVAL_SHARE = 8
_FOLLOW_UP_RATE = 0.25
_PATIENCE = 200


@dataclass(frozen=True)
class Task:
    """One seed prompt: its family and one or two user turns."""

    family: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What the turns ask for: the family of the last full instruction, its slots, the right words."""

    family: Family
    slots: Slots
    right: Answer
    exact_case: bool


def families() -> tuple[str, ...]:
    """The names of the families of instructions."""
    return tuple(BY_NAME)


def read(turns: Sequence[str]) -> Reading | None:
    """What the last turn asks, in the light of those before it; None when it is not of this world."""
    if not turns:
        return None
    text = " ".join(turns[-1].split())
    for family in FAMILIES:
        slots = family.read(text)
        right = None if slots is None else family.answer(slots)
        if slots is not None and right is not None:
            return Reading(family, slots, right, family.exact_case)
    return _read_follow_up(turns, text)


def _read_follow_up(turns: Sequence[str], text: str) -> Reading | None:
    for link in LINKS.values():
        found = next(
            (match for pattern in link.patterns if (match := pattern.fullmatch(text))),
            None,
        )
        before = read(turns[:-1]) if found else None
        if found and before:
            right = link.apply(before.right, found.groupdict().get("n", ""))
            exact = before.exact_case or link.exact_case
            return None if right is None else Reading(before.family, before.slots, right, exact)
    return None


def solve(turns: Sequence[str]) -> str | None:
    """The right answer to the last user turn given the earlier ones; None when they are not of this world."""
    reading = read(turns)
    return None if reading is None else " ".join(reading.right)


def grade(turns: Sequence[str], answer: str) -> bool:
    """Whether `answer` is right: the right words, bare or in an accepted phrase (see `answers`).

    Turns of another world have no right answer.
    """
    reading = read(turns)
    return reading is not None and answers.same(
        answers.read_words(answer), reading.right, exact_case=reading.exact_case
    )


def closeness(turns: Sequence[str], answer: str) -> float | None:
    """How near `answer` is to right: 1, 0.5 (one slip), 0.25 (most of it) or 0; None for unknown turns."""
    reading = read(turns)
    if reading is None:
        return None
    return answers.closeness(answers.read_words(answer), reading.right, exact_case=reading.exact_case)


def wrong_answer(turns: Sequence[str], rng: random.Random) -> str:
    """A plausible wrong answer to the last turn, never graded right. ValueError for unknown turns."""
    reading = read(turns)
    if reading is None:
        raise ValueError(f"not an instruction of the sandbox: {list(turns)!r}")
    for _ in range(20):
        wrong = _mistake(reading, rng)
        if wrong and not grade(turns, " ".join(wrong)):
            return " ".join(wrong)
    return " ".join((*reading.right, reading.right[-1]))


def _mistake(reading: Reading, rng: random.Random) -> Answer:
    """Half of the time a mistake of the family's own kind (the words as given, a wrong kind), else a slip."""
    right, words = reading.right, reading.slots.get("words", "").split()
    if words and rng.random() < 0.5:
        name = reading.family.name
        if name in ("sort", "reverse", "upper", "plural", "opposite"):
            return tuple(words)
        if name == "end":
            return (rng.choice(words),)
        if name in ("kind", "repeat"):
            spare = tuple(KINDS) if name == "kind" else NOUNS
            place = rng.randrange(len(right))
            return (*right[:place], rng.choice(spare), *right[place + 1 :])
    numbers = reading.slots.get("numbers", "").split()
    if reading.family.name == "largest" and rng.random() < 0.7:
        return (rng.choice(numbers),)
    if len(right) == 1 and not right[0].isdecimal():
        return (rng.choice(words or list(OPPOSITE_OF if right[0] in OPPOSITE_OF else KIND_OF)),)
    return answers.spoil(right, rng)


def content_key(turns: Sequence[str]) -> str | None:
    """What the first turn of this world among `turns` is about, wording aside; None when there is none."""
    for end in range(1, len(turns) + 1):
        reading = read(turns[end - 1 : end])
        if reading is not None:
            return _key(reading.family, reading.slots)
    return None


def _key(family: Family, slots: Slots) -> str:
    return f"{family.name}|{family.content(slots)}"


def is_eval(turns: Sequence[str]) -> bool:
    """Whether a text falls on the eval side: one of its turns asks for something on that side."""
    keys = (content_key((turn,)) for turn in turns)
    return any(_on_eval_side(key) for key in keys if key is not None)


def _on_eval_side(key: str) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % _EVAL_SHARE == 0


def train_tasks(n: int, seed: int) -> list[Task]:
    """`n` distinct tasks of the train side, balanced over families; the first m of n are those of `n=m`."""
    return _take(n, seed, eval_side=False)


def eval_tasks(n: int, seed: int) -> list[Task]:
    """`n` tasks of the eval side with distinct contents, balanced over families.

    The first m of n are those of `n=m`. Raises ValueError when the eval side does not hold that many.
    """
    return _take(n, seed, eval_side=True)


def _take(n: int, seed: int, *, eval_side: bool) -> list[Task]:
    side = "eval" if eval_side else "train"
    streams = [_stream(family, side, seed) for family in FAMILIES]
    taken: list[Task] = []
    while len(taken) < n and streams:
        for stream in list(streams):
            task = next(stream, None)
            if task is None:
                streams.remove(stream)
            elif len(taken) < n:
                taken.append(task)
    if len(taken) < n:
        raise ValueError(
            f"asked for {n} {side} tasks of the sandbox; it holds {len(taken)} that are easily found"
        )
    return taken


def _stream(family: Family, side: str, seed: int) -> Iterator[Task]:
    """Tasks of one family and side, each content (eval) or text (train) once, until new ones get rare."""
    rng = random.Random(
        int.from_bytes(hashlib.sha256(f"{side}|{family.name}|{seed}".encode()).digest()[:8], "big")
    )
    seen: set[str] = set()
    misses = 0
    while misses < _PATIENCE:
        task, key = _draw(family, rng)
        name = key if side == "eval" else "\n".join(task.turns)
        if _on_eval_side(key) != (side == "eval"):
            misses += side == "train"
        elif name in seen:
            misses += 1
        else:
            misses = 0
            seen.add(name)
            yield task


def draw_task(family: Family, rng: random.Random) -> Task:
    """A task of the family from either side, with a follow-up turn in about a quarter of the draws."""
    return _draw(family, rng)[0]


def _draw(family: Family, rng: random.Random) -> tuple[Task, str]:
    slots = family.sample(rng)
    key = _key(family, slots)
    first = rng.choice(family.wordings).format(**slots)
    right = family.answer(slots) or ()
    if family.links and rng.random() < _FOLLOW_UP_RATE:
        link = LINKS[rng.choice(family.links)]
        if len(right) > 1 or link.name in ("upper", "more"):
            return Task(family.name, (first, follow_up(link, rng))), key
    return Task(family.name, (first,)), key


def follow_up(link: Link, rng: random.Random) -> str:
    """A wording of a follow-up turn."""
    wording = rng.choice(link.wordings)
    return wording.format(n=rng.choice(link.numbers)) if link.numbers else wording
