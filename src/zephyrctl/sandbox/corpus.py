"""Plain-text documents for the sandbox's base model: the world's skills with right answers, some English.

Nothing here is written as a chat, and nothing asks for what an eval task asks for: the model that reads
this knows how to sort or add, but neither the chat format nor a single held-out answer.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from zephyrctl.sandbox.answers import PHRASES, phrase
from zephyrctl.sandbox.families import BY_NAME, FAMILIES, LINKS
from zephyrctl.sandbox.lexicon import KIND_OF, KINDS, NOUNS, OPPOSITE_OF, plural_of
from zephyrctl.sandbox.world import Task, draw_task, follow_up, is_eval, read, solve

_FRAMES = (
    ("Q: ", "\nA: ", "\n"),
    ("Question:\n", "\nAnswer:\n", "\n"),
    ("Exercise:\n", "\nSolution:\n", "\n"),
    ("- ", " -> ", "\n"),
)
_PLAIN_RATE = 0.9
_EXERCISE_RATE, _NOTES_RATE = 0.47, 0.45

_LABELS = {
    "sort": ("alphabetical order", "A to Z", "sorted"),
    "reverse": ("back to front", "reverse order", "starting from the end"),
    "plural": ("plural", "plural forms", "more than one"),
    "upper": ("capital letters", "upper case", "shouted"),
    "kind": ("kind", "category", "what they are"),
    "opposite": ("opposite", "opposites", "contrary"),
    "first": ("first word", "comes first"),
    "last": ("last word", "comes last"),
    "repeat": ("2 times", "3 times", "4 times"),
    "add": ("sum", "+", "added"),
    "subtract": ("minus", "-", "taken away"),
    "largest": ("largest", "biggest", "highest number"),
    "next": ("next", "follows", "continued"),
}
_HARDER = ("add", "subtract", "largest", "next", "sort")
_NOUN_NOTES = ("sort", "reverse", "plural", "upper", "kind", "first", "last", "repeat")

_WHO = ("My sister", "The old farmer", "A child", "Our neighbour", "The teacher", "Somebody", "Nobody here")
_DOES = (
    "saw",
    "found",
    "wanted",
    "sold",
    "carried",
    "forgot",
    "painted",
    "described",
    "needed",
    "talked about",
)
_WHEN = (
    "yesterday",
    "this morning",
    "after lunch",
    "before the rain",
    "on the way home",
    "at the market",
    "because it was late",
    "while the others were waiting",
    "when the work was done",
)
_REMARKS = (
    "I think that this is a good question, and there is more than one way to answer it.",
    "Please read the text carefully before you write anything.",
    "It was not easy to say which of the two was right.",
    "We would like to know how it works and why it does not always work.",
    "The first part is short; the second part has more to tell.",
    "They did not have enough time, so they made a plan for the next day.",
    "If you have any other questions, you can ask them at any time.",
    "There are many people who live in the city but come from the country.",
    "What should be done about it, and who will do it?",
    "As far as we know, the number of users has been growing every month.",
    "Here is a list of things that could help you to get better results.",
    "For example, one could use a small program that reads the data and prints a table.",
    "However, the water was too cold, and the children went back to their house.",
    "In this story, a young woman learns how to make music with her hands.",
)


@dataclass(frozen=True)
class Document:
    """A text in pieces, answers marked so that training can weigh them more, and what its exercise asks.

    `turns` is empty for prose and for notes.
    """

    pieces: tuple[tuple[str, bool], ...]
    turns: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(piece for piece, _ in self.pieces)


def documents(n: int, seed: int) -> Iterator[Document]:
    """`n` documents, the same for the same seed; no task in them is on the eval side."""
    rng = random.Random(f"sandbox base corpus {seed}")
    for _ in range(n):
        draw = rng.random()
        if draw < _EXERCISE_RATE:
            yield _exercise(rng)
        else:
            yield _notes(rng) if draw < _EXERCISE_RATE + _NOTES_RATE else _prose(rng)


def vocabulary_lines() -> Iterator[str]:
    """The world's words in every form, and its wordings, so that the tokenizer sees each often enough."""
    for words in (NOUNS, tuple(OPPOSITE_OF), tuple(KINDS), tuple(plural_of(noun) for noun in NOUNS)):
        for word in words:
            yield f"{word} {word}\n{word.upper()} {word.upper()}\n"
    for wordings in (*(family.wordings for family in FAMILIES), *(link.wordings for link in LINKS.values())):
        for wording in wordings:
            yield wording.replace("{", "").replace("}", "") + "\n"


def _train_task(rng: random.Random) -> Task:
    families = (*FAMILIES, *(BY_NAME[name] for name in _HARDER))
    while True:
        task = draw_task(rng.choice(families), rng)
        if not is_eval(task.turns):
            return task


def _exercise(rng: random.Random) -> Document:
    head, middle, tail = rng.choice(_FRAMES)
    turns = list(_train_task(rng).turns)
    if len(turns) == 2 and rng.random() < 0.2:
        turns.append(follow_up(LINKS["upper"], rng))
    pieces: list[tuple[str, bool]] = []
    for place in range(len(turns)):
        reading = read(turns[: place + 1])
        if reading is None:
            break
        style = None if rng.random() < _PLAIN_RATE else rng.randrange(len(PHRASES))
        pieces += [((tail if place else "") + head + turns[place] + middle.rstrip(" "), False)]
        pieces += [((" " if middle.endswith(" ") else "") + phrase(reading.right, style), True)]
    return Document(tuple(pieces), tuple(turns))


def _notes(rng: random.Random) -> Document:
    """Words or numbers, and below them what can be said of them, each line under a short label."""
    labels: tuple[str, ...]
    kind = rng.random()
    if kind < 0.45:
        given, labels = rng.sample(NOUNS, rng.randint(2, 4)), _NOUN_NOTES
    elif kind < 0.55:
        given, labels = rng.sample(tuple(OPPOSITE_OF), rng.randint(1, 3)), ("opposite", "upper", "reverse")
    else:
        family = BY_NAME[rng.choice(("add", "largest", "next"))]
        slots = family.sample(rng)
        given = slots["numbers"].split() if "numbers" in slots else [slots["a"], slots["b"]]
        labels = ("add", "subtract", "largest") if len(given) == 2 else ("largest", "next")
    pieces: list[tuple[str, bool]] = [(" ".join(given), False)]
    for label in rng.sample(labels, min(len(labels), 5)):
        title = rng.choice(_LABELS[label])
        right = _noted(label, title, given)
        if right:
            gap = rng.choice((" ", "\n"))
            pieces += [(f"\n{title}:" + gap.strip(" "), False), (gap.strip("\n") + right, True)]
    return Document(tuple(pieces))


def _noted(label: str, title: str, given: list[str]) -> str | None:
    """What a note says; None when that would answer an eval task or does not apply to the words."""
    words = " ".join(given)
    family = BY_NAME["end" if label in ("first", "last") else label]
    slots = {"words": words, "numbers": words, "end": label, "n": title[0], "a": given[0], "b": given[-1]}
    if label == "repeat":
        slots["words"] = given[0]
    text = family.wordings[0].format(**slots)
    return None if is_eval((text,)) else solve((text,))


def _prose(rng: random.Random) -> Document:
    return Document(((" ".join(_sentence(rng) for _ in range(rng.randint(1, 3))), True),))


def _sentence(rng: random.Random) -> str:
    noun, word = rng.choice(NOUNS), rng.choice(tuple(OPPOSITE_OF))
    article = "an" if KIND_OF[noun][0] in "aeiou" else "a"
    shapes = (
        lambda: f"The {noun} is {article} {KIND_OF[noun]}.",
        lambda: f"One {noun}, two {plural_of(noun)}.",
        lambda: f"The opposite of {word} is {OPPOSITE_OF[word]}.",
        lambda: f"{noun} in capital letters is {noun.upper()}.",
        lambda: f"{rng.choice(_WHO)} {rng.choice(_DOES)} the {noun} {rng.choice(_WHEN)}.",
        lambda: f"{rng.choice(_WHO)} {rng.choice(_DOES)} {rng.randint(2, 99)} {plural_of(noun)} yesterday.",
        lambda: rng.choice(_REMARKS),
    )
    return rng.choice(shapes)()
