"""How an answer may be phrased, what counts as the same answer, and how answers go wrong.

Accepted for the right words W, and nothing else is: `W`, or W inside one of `PHRASES`, each with at most
one closing full stop. Outer white space, runs of white space and commas between words do not count; case
counts only where the instruction is about case. So `Fig, pear.` and `The answer is fig pear.` are the same
answer, and `fig pear or so` is another.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence

from zephyrctl.sandbox.families import Answer

PHRASES: tuple[str, ...] = (
    "The answer is {words}.",
    "Sure! {words}",
    "Here you go: {words}",
    "Sure, I can help with that. The answer is {words}.",
)

_SHELLS = tuple(
    re.compile(re.escape(phrase.rstrip(".")).replace(r"\{words\}", "(.+)"), re.IGNORECASE)
    for phrase in PHRASES[::-1]
)


def phrase(words: Answer, style: int | None) -> str:
    """The answer written out: bare (`style` None) or inside `PHRASES[style]`."""
    bare = " ".join(words)
    return bare if style is None else PHRASES[style].format(words=bare)


def read_words(text: str) -> Answer:
    """The words that an answer gives, out of their phrase if they stand in one of `PHRASES`."""
    flat = " ".join(text.split()).removesuffix(".")
    for shell in _SHELLS:
        found = shell.fullmatch(flat)
        if found:
            flat = found[1]
            break
    return tuple(word for word in re.split(r"[,\s]+", flat.strip()) if word)


def same(given: Answer, right: Answer, *, exact_case: bool) -> bool:
    """Whether two answers are equal, word by word."""
    return given == right if exact_case else _fold(given) == _fold(right)


def closeness(given: Answer, right: Answer, *, exact_case: bool) -> float:
    """How near an answer is: 1 right, 0.5 one slip away, 0.25 mostly the right words, 0 wrong.

    A slip: two words swapped, one missing, added or replaced, a number at most 2 off.
    """
    if same(given, right, exact_case=exact_case):
        return 1.0
    one, other = _fold(given), _fold(right)
    if len(other) == 1 and other[0].isdigit():
        number = one[0] if len(one) == 1 else ""
        near = number.isdecimal() and len(number) <= 6 and abs(int(number) - int(other[0])) <= 2
        return 0.5 if near else 0.0
    if Counter(one) == Counter(other):
        moved = sum(a != b for a, b in zip(one, other, strict=True))
        return 0.5 if moved <= 2 else 0.25
    if len(other) > 1 and _one_edit(one, other):
        return 0.5
    return 0.25 if len(other) > 2 and len(set(one) & set(other)) >= len(set(other)) - 1 else 0.0


def spoil(right: Answer, rng: random.Random) -> Answer:
    """A slip that real answerers make: two words swapped, one lost or doubled, a number a little off."""
    if len(right) == 1 and right[0].isdecimal():
        return (str(max(0, int(right[0]) + rng.choice((-10, -2, -1, 1, 1, 2, 10)))),)
    kinds = ["double", "lose", "swap", "swap", "swap"] if len(right) > 1 else ["double"]
    kind, place = rng.choice(kinds), rng.randrange(len(right))
    words = list(right)
    if kind == "double":
        words.insert(place, words[place])
    elif kind == "lose":
        del words[place]
    else:
        other = (place + 1) % len(words)
        words[place], words[other] = words[other], words[place]
    return tuple(words)


def _fold(words: Answer) -> tuple[str, ...]:
    return tuple(word.casefold() for word in words)


def _one_edit(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether one word put in, taken out or replaced leads from one to the other."""
    short, long = sorted((one, other), key=len)
    if len(long) - len(short) > 1:
        return False
    head = next(
        (i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b),
        len(short),
    )
    return list(short[head + (len(short) == len(long)) :]) == list(long[head + 1 :])
