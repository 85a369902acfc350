"""The families of instructions: how each is worded, what it is about, and its exact answer.

A family owns wordings with slots (`{words}`, `{n}`, `{a}` ...), a sampler that fills the slots, the answer
as a tuple of words, and the *content*: what the instruction is about, whatever its wording. Equal content
means an equal task (the sum of 3 and 12 is that of 12 and 3), and the train/eval split is made on content.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from zephyrctl.sandbox.lexicon import KIND_OF, NOUNS, OPPOSITE_OF, plural_of

Slots = Mapping[str, str]
Answer = tuple[str, ...]

_SLOT_PATTERN = {
    "words": r"[a-z]+(?:,? [a-z]+)*",
    "word": r"[a-z]+",
    "numbers": r"\d{1,6}(?:,? (?:or )?\d{1,6})+",
    "end": r"first|last",
}
_NUMBER = r"\d{1,6}"


@dataclass(frozen=True)
class Family:
    """One kind of instruction.

    `sample` draws slots; `answer` solves them (None: outside the world, e.g. a noun without a known plural);
    `content` names what is asked. `links` are the follow-up turns that make sense after it. `exact_case`: the
    answer's case counts.
    """

    name: str
    wordings: tuple[str, ...]
    sample: Callable[[random.Random], dict[str, str]]
    answer: Callable[[Slots], Answer | None]
    content: Callable[[Slots], str]
    links: tuple[str, ...] = ()
    exact_case: bool = False

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        """One pattern for each wording; groups are the slots."""
        return tuple(re.compile(_pattern(wording), re.IGNORECASE | re.ASCII) for wording in self.wordings)

    def read(self, text: str) -> dict[str, str] | None:
        """The slots of `text` when it is worded as this family words it, else None."""
        for pattern in self.patterns:
            found = pattern.fullmatch(text)
            if found:
                return {name: _tidy(value) for name, value in found.groupdict().items()}
        return None


def _pattern(wording: str) -> str:
    body = re.escape(wording.rstrip(".?"))
    for slot in re.findall(r"\{(\w+)\}", wording):
        body = body.replace(rf"\{{{slot}\}}", f"(?P<{slot}>{_SLOT_PATTERN.get(slot, _NUMBER)})")
    return body.replace(r"\ ", r"\s+") + r"\s*[.?!]?"


def _tidy(value: str) -> str:
    return " ".join(word for word in re.split(r"[,\s]+", value.lower()) if word not in ("and", "or"))


def _words(low: int, high: int, pool: tuple[str, ...] = NOUNS) -> Callable[[random.Random], dict[str, str]]:
    return lambda rng: {"words": " ".join(rng.sample(pool, rng.randint(low, high)))}


def _numbers(low: int, high: int, small: tuple[int, int]) -> Callable[[random.Random], dict[str, str]]:
    return lambda rng: {"a": str(rng.randint(low, high)), "b": str(rng.randint(*small))}


def _repeat_slots(rng: random.Random) -> dict[str, str]:
    return {
        "words": " ".join(rng.sample(NOUNS, rng.randint(1, 2))),
        "n": str(rng.randint(2, 4)),
    }


def _end_slots(rng: random.Random) -> dict[str, str]:
    return {
        "end": rng.choice(("first", "last")),
        "words": " ".join(rng.sample(NOUNS, rng.randint(3, 5))),
    }


def _sequence_slots(rng: random.Random) -> dict[str, str]:
    start, step = rng.randint(10, 69), rng.choice((1, 2, 3, 5, 10))
    return {"numbers": " ".join(str(start + step * i) for i in range(3))}


def _largest_slots(rng: random.Random) -> dict[str, str]:
    return {"numbers": " ".join(str(n) for n in rng.sample(range(10, 100), rng.randint(2, 3)))}


def _each(table: Callable[[str], str | None]) -> Callable[[Slots], Answer | None]:
    def answer(slots: Slots) -> Answer | None:
        found = [table(word) for word in slots["words"].split()]
        known = tuple(word for word in found if word is not None)
        return known if len(known) == len(found) else None

    return answer


def _difference(slots: Slots) -> Answer | None:
    rest = int(slots["a"]) - int(slots["b"])
    return (str(rest),) if rest >= 0 else None


def _repeated(slots: Slots) -> Answer | None:
    count = int(slots["n"])
    return tuple(slots["words"].split()) * count if 1 <= count <= 12 else None


def _at_end(slots: Slots) -> Answer:
    return (slots["words"].split()[0 if slots["end"] == "first" else -1],)


def _next_number(slots: Slots) -> Answer | None:
    terms = [int(term) for term in slots["numbers"].split()]
    steps = {after - before for before, after in pairwise(terms)}
    return (str(terms[-1] + steps.pop()),) if len(terms) >= 3 and len(steps) == 1 and min(steps) > 0 else None


def _in_order(slots: Slots) -> str:
    return " ".join(slots[name] for name in sorted(slots))


def _as_set(name: str) -> Callable[[Slots], str]:
    return lambda slots: " ".join(sorted(slots[name].split()))


LIST_LINKS = ("reverse", "upper", "first")

FAMILIES: tuple[Family, ...] = (
    Family(
        "sort",
        (
            "Sort these words: {words}",
            "Put these words in alphabetical order: {words}",
            "Write {words} from A to Z.",
        ),
        _words(3, 4),
        lambda slots: tuple(sorted(slots["words"].split())),
        _as_set("words"),
        LIST_LINKS,
    ),
    Family(
        "reverse",
        (
            "Reverse the order of these words: {words}",
            "Write these words back to front: {words}",
            "Say {words} starting from the end.",
        ),
        _words(3, 4),
        lambda slots: tuple(slots["words"].split()[::-1]),
        _in_order,
        ("upper", "first"),
    ),
    Family(
        "add",
        ("What is {a} + {b}?", "Add {a} and {b}.", "Find the sum of {a} and {b}."),
        _numbers(10, 89, (2, 9)),
        lambda slots: (str(int(slots["a"]) + int(slots["b"])),),
        lambda slots: " ".join(sorted((slots["a"], slots["b"]), key=int)),
        ("more",),
    ),
    Family(
        "subtract",
        ("What is {a} - {b}?", "Take {b} away from {a}.", "How much is {a} minus {b}?"),
        _numbers(20, 99, (2, 9)),
        _difference,
        _in_order,
        ("more",),
    ),
    Family(
        "largest",
        (
            "Which number is the largest: {numbers}?",
            "Give the biggest of {numbers}.",
            "Find the highest number among {numbers}.",
        ),
        _largest_slots,
        lambda slots: (max(slots["numbers"].split(), key=int),),
        _as_set("numbers"),
    ),
    Family(
        "opposite",
        (
            "Give the opposite of each word: {words}",
            "What are the opposites of {words}?",
            "Turn into the contrary: {words}",
        ),
        _words(1, 3, tuple(OPPOSITE_OF)),
        _each(OPPOSITE_OF.get),
        _in_order,
        LIST_LINKS,
    ),
    Family(
        "plural",
        (
            "Write the plural of each word: {words}",
            "Give the plural forms of {words}.",
            "More than one of each: {words}",
        ),
        _words(2, 3),
        _each(lambda noun: plural_of(noun) if noun in KIND_OF else None),
        _in_order,
        LIST_LINKS,
    ),
    Family(
        "repeat",
        (
            "Repeat {n} times: {words}",
            "Say {words} {n} times.",
            "Write {words} again and again, {n} times in all.",
        ),
        _repeat_slots,
        _repeated,
        _in_order,
        ("upper",),
    ),
    Family(
        "end",
        (
            "What is the {end} word of this list: {words}?",
            "Give only the {end} word: {words}",
            "Which word comes {end} in {words}?",
        ),
        _end_slots,
        _at_end,
        _in_order,
        ("upper",),
    ),
    Family(
        "upper",
        (
            "Write in capital letters: {words}",
            "Put {words} in upper case.",
            "Shout these words: {words}",
        ),
        _words(2, 3),
        lambda slots: tuple(slots["words"].upper().split()),
        _in_order,
        ("reverse", "first"),
        exact_case=True,
    ),
    Family(
        "next",
        (
            "Which number comes next: {numbers}?",
            "Continue the sequence with one number: {numbers}",
            "What follows {numbers}?",
        ),
        _sequence_slots,
        _next_number,
        _in_order,
        ("more",),
    ),
    Family(
        "kind",
        (
            "What kind of thing is each of these: {words}?",
            "Name the category of each word: {words}",
            "Say what {words} are.",
        ),
        _words(2, 3),
        _each(KIND_OF.get),
        _in_order,
        LIST_LINKS,
    ),
)

BY_NAME: Mapping[str, Family] = {family.name: family for family in FAMILIES}


@dataclass(frozen=True)
class Link:
    """A follow-up turn: wordings, and what it makes of the answer before it."""

    name: str
    wordings: tuple[str, ...]
    apply: Callable[[Answer, str], Answer | None]
    numbers: tuple[str, ...] = ()
    exact_case: bool = False

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        """One pattern for each wording; `n` is the only slot."""
        return tuple(re.compile(_pattern(wording), re.IGNORECASE | re.ASCII) for wording in self.wordings)


def _more(before: Answer, number: str) -> Answer | None:
    return (str(int(before[0]) + int(number)),) if len(before) == 1 and before[0].isdigit() else None


LINKS: Mapping[str, Link] = {
    link.name: link
    for link in (
        Link(
            "reverse",
            ("Now in reverse order.", "And the other way round?"),
            lambda before, _: before[::-1],
        ),
        Link(
            "upper",
            ("Now in capital letters.", "And in upper case?"),
            lambda before, _: tuple(word.upper() for word in before),
            exact_case=True,
        ),
        Link(
            "first",
            ("Now only the first of them.", "Keep only the first word."),
            lambda before, _: before[:1],
        ),
        Link(
            "more",
            ("Now add {n} more.", "And {n} more?"),
            _more,
            ("1", "2", "3", "5", "10"),
        ),
    )
}
