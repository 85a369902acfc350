"""The sandbox teacher's next instruction: a little more demanding, solvable, on the train side."""

import random
from collections.abc import Iterator

from zephyrctl.sandbox import world
from zephyrctl.sandbox.families import BY_NAME, FAMILIES, Family
from zephyrctl.sandbox.lexicon import NOUNS, OPPOSITE_OF

_MOST_WORDS = {"sort": 4, "reverse": 4, "opposite": 3, "plural": 3, "upper": 3, "kind": 3, "end": 5}
_WORD_FAMILIES = ("sort", "reverse", "plural", "upper", "kind", "end")
_NUMBER_FAMILIES = ("add", "subtract", "largest", "next")


def refine(instruction: str, rng: random.Random) -> str:
    """A new instruction in the light of `instruction`: longer, of a neighbouring family, or of its own.

    Never an eval item and never the instruction itself; an instruction of another world gives one of this
    world.
    """
    proposals = _proposals(instruction, rng)
    return next(
        text
        for text in proposals
        if not world.is_eval((text,)) and text != instruction and world.solve((text,))
    )


def _proposals(instruction: str, rng: random.Random) -> Iterator[str]:
    reading = world.read((instruction,))
    family = rng.choice(FAMILIES) if reading is None else reading.family
    words = [] if reading is None else reading.slots.get("words", "").split()
    choice = rng.random()
    for _ in range(20):
        if reading is not None and words and choice < 0.4 and len(words) < _MOST_WORDS.get(family.name, 0):
            spare = [
                word for word in (OPPOSITE_OF if family.name == "opposite" else NOUNS) if word not in words
            ]
            grown = " ".join([*words, rng.choice(spare)])
            yield rng.choice(family.wordings).format(**{**reading.slots, "words": grown})
        elif choice < 0.75:
            yield _neighbour(family, words, rng)
        else:
            yield _fresh(family, rng)
    while True:
        yield _fresh(family, rng)


def _neighbour(family: Family, words: list[str], rng: random.Random) -> str:
    """The same words in another exercise, or another exercise with numbers."""
    if words and all(word in NOUNS for word in words):
        other = BY_NAME[rng.choice([name for name in _WORD_FAMILIES if name != family.name])]
        spare = [word for word in NOUNS if word not in words]
        count = max(3, min(len(words) + rng.randint(0, 1), _MOST_WORDS[other.name]))
        kept = [*words, *rng.sample(spare, count)][:count]
        return rng.choice(other.wordings).format(words=" ".join(kept), end=rng.choice(("first", "last")))
    if family.name in _NUMBER_FAMILIES:
        return _fresh(BY_NAME[rng.choice(_NUMBER_FAMILIES)], rng)
    return _fresh(rng.choice(FAMILIES), rng)


def _fresh(family: Family, rng: random.Random) -> str:
    return world.draw_task(family, rng).turns[0]
