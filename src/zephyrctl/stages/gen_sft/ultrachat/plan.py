"""Which dialogues are to be held: places in a tree of topics, subtopics and opening messages, before any is known.

A topic's request brings `SUBTOPICS` subtopics, a subtopic's request `QUESTIONS` opening messages, each of which opens
one dialogue. Places are filled in a fixed order: the topics in an order drawn by hash, of each its first subtopic with
all its opening messages, then of each the second, and so on; when every subtopic is used up, further lists of
subtopics are drawn. So N dialogues are the first N of any larger number, and no list is asked for that they do not
need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.asking.topics import read_topics, topics
from zephyrctl.config import digest_of
from zephyrctl.records import row_seed

SUBTOPICS = 20
QUESTIONS = 10


@dataclass(frozen=True)
class Slot:
    """The place of one dialogue: `number` among all; the topic; which list of its subtopics, which item of that list,
    and which item of that subtopic's opening messages (all from 0 on)."""

    number: int
    topic: str
    draw: int
    subtopic: int
    question: int

    @property
    def branch(self) -> str:
        """Equal for the dialogues that begin with one list of opening messages: they stay in one part of a cut-up
        step, so that no two parts pay for that list."""
        return f"{self.topic}\x1f{self.draw}\x1f{self.subtopic}"

    @property
    def where(self) -> str:
        """The place in words, counted from 1."""
        again = f" (list {self.draw + 1})" if self.draw else ""
        return f"{self.topic}{again}, subtopic {self.subtopic + 1}, opening {self.question + 1}"


def slots_of(topics: Sequence[str], rows: int, seed: int) -> list[Slot]:
    """The first `rows` places. `topics` are distinct; in which order they are given does not matter."""
    order = sorted(topics, key=lambda topic: (row_seed(seed, "topic", topic), topic))
    slots = []
    for number in range(rows):
        branch, question = divmod(number, QUESTIONS)
        rank, topic = divmod(branch, len(order))
        draw, subtopic = divmod(rank, SUBTOPICS)
        slots.append(Slot(number, order[topic], draw, subtopic, question))
    return slots


def topics_of(path: str | None) -> tuple[list[str], InputRef]:
    """The topics of a text file, or the shipped ones. Raises RefNotFound, UsageError, IntegrityError."""
    found = topics() if path is None else read_topics(Path(path))
    name = "zephyrctl/topics" if path is None else path
    return found, InputRef(role="topics", ref=name, digest=digest_of(sorted(found)), kind="topics")
