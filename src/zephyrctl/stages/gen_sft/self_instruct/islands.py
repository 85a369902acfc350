"""The bootstrap of Self-Instruct (section 2.2): new tasks after seed tasks and after tasks made before, in waves.

An island is one pool that grows by itself. The requests of a wave show tasks of the pool as it was when the wave
began, drawn by seed, island, wave and request; what is new among their replies is decided when the wave is over, in the
order of requests. So neither arrival order nor concurrency nor the growth of other islands changes an island, and one
that is to have more tasks begins with the same ones.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zephyrctl.asking.seats import trouble
from zephyrctl.config import canonical
from zephyrctl.curation.novelty import Pool
from zephyrctl.providers.base import UNPAID, Answer, Failure
from zephyrctl.records import row_seed
from zephyrctl.stages.gen_sft.self_instruct.reading import split_tasks, unusable
from zephyrctl.stages.gen_sft.self_instruct.requests import tasks_request

AskAll = Callable[[Sequence[str], str, str], Sequence[Answer | Failure]]
"""Asks the teacher: requests, what for, and a task name in; replies in the same order out."""

TASKS = "tasks"
SHOWN, SHOWN_MADE = 8, 2
"""Tasks in a request, and how many of them at most are machine-made."""
FIRST_WAVE, LARGEST_WAVE = 4, 64
STALLED_WAVES, STALLED_SHARE = 5, 0.02
"""An island ends when so many waves in a row bring less than this share of new tasks."""

SURPLUS = "surplus"
_SURPLUS = SURPLUS, "more than were wanted"

Ending = Literal["", "stalled", "unpaid"]


@dataclass(frozen=True)
class Rules:
    """What all islands share: seed tasks, how many tasks each island is to make, and the bound of ROUGE-L."""

    seeds: tuple[str, ...]
    target: int
    novelty: float
    seed: int


@dataclass(frozen=True)
class Reject:
    """Something the teacher said that is not kept; `said` is what it was."""

    where: str
    reason: str
    detail: str
    said: dict[str, Any]

    def as_row(self) -> dict[str, str]:
        """The reject as the store keeps it."""
        return {
            "where": self.where, "reason": self.reason, "detail": self.detail, "row": canonical(self.said),
        }  # fmt: skip


@dataclass
class Task:
    """A new task, where it was made, and what became of it when it was asked about (see `instances`).

    `kind` None = not asked yet. `reply` = the text with its instances; `trouble` = why there is none.
    """

    instruction: str
    where: str
    kind: str | None = None
    reply: str | None = None
    cut: bool = False
    trouble: tuple[str, str] | None = None


@dataclass
class Island:
    """What one island came to.

    For every island: asked = answered + failures, and proposed = tasks + rejects, where `rejects` holds tasks that
    cannot be used, are not new, or are more than were wanted. Requests that were not paid for (a run that only replays)
    are not counted: the island ends there.
    """

    index: int
    tasks: list[Task] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    asked: int = 0
    answered: int = 0
    proposed: int = 0
    failures: list[Reject] = field(default_factory=list)
    ending: Ending = ""


def grow(indices: Sequence[int], rules: Rules, ask: AskAll) -> list[Island]:
    """The islands of these indices, in the same order, side by side, wave by wave."""
    islands = [_Growth(index, rules) for index in indices]
    wave = 0
    while growing := [island for island in islands if island.growing]:
        waves = [island.requests(wave) for island in growing]
        asked = [text for requests in waves for text in requests]
        replies = iter(ask(asked, TASKS, f"new tasks, wave {wave + 1}"))
        for island, requests in zip(growing, waves, strict=True):
            island.take(wave, [next(replies) for _ in requests])
        wave += 1
    return [island.finished() for island in islands]


class _Growth:
    def __init__(self, index: int, rules: Rules) -> None:
        self.island = Island(index)
        self._rules = rules
        self._pool = Pool()
        self._texts: list[str] = []
        self._exact: set[str] = set()
        self._idle = 0
        for seed in rules.seeds:
            self._add(seed)

    @property
    def growing(self) -> bool:
        return not self.island.ending and len(self.island.tasks) < self._rules.target

    def requests(self, wave: int) -> list[str]:
        """The requests of a wave. Waves grow with what was asked before, so that the last one brings few more than are
        wanted, and depend on nothing else."""
        count = min(LARGEST_WAVE, max(FIRST_WAVE, self.island.asked // 4))
        return [self._request(wave, number) for number in range(count)]

    def _request(self, wave: int, number: int) -> str:
        rng = random.Random(row_seed(self._rules.seed, "self-instruct", self.island.index, wave, number))
        own = [task.instruction for task in self.island.tasks]
        shown = rng.sample(own, min(SHOWN_MADE, len(own)))
        rest = min(SHOWN - len(shown), len(self._rules.seeds))
        shown += rng.sample(self._rules.seeds, rest)
        rng.shuffle(shown)
        return tasks_request(shown)

    def take(self, wave: int, replies: Sequence[Answer | Failure]) -> None:
        """Decides what a wave brought, in the order of its requests."""
        island = self.island
        before, proposed = len(island.tasks), island.proposed
        for number, reply in enumerate(replies, 1):
            if isinstance(reply, Failure) and reply.reason == UNPAID:
                island.ending = "unpaid"
                return
            self._take_reply(f"island {island.index + 1}, wave {wave + 1}, request {number}", reply)
        new = len(island.tasks) - before
        self._idle = 0 if new > STALLED_SHARE * (island.proposed - proposed) else self._idle + 1
        if self._idle == STALLED_WAVES:
            island.ending = "stalled"

    def _take_reply(self, where: str, reply: Answer | Failure) -> None:
        island = self.island
        island.asked += 1
        cut = isinstance(reply, Answer) and reply.outcome == "length"
        found = None if cut else trouble(reply)
        tasks = split_tasks(reply.text) if isinstance(reply, Answer) and found is None else []
        if found is None and not tasks:
            found = ("cut_off", "no task is whole") if cut else ("unreadable", "no numbered list")
        if found is not None:
            said = {"text": reply.text} if isinstance(reply, Answer) else {}
            island.failures.append(Reject(where, *found, said))
            return
        island.answered += 1
        island.proposed += len(tasks)
        for number, text in enumerate(tasks, 1):
            place = f"{where}, task {number}"
            last = cut and number == len(tasks)
            unfinished = ("unfinished", "the reply was cut off within it") if last else None
            why = unfinished or unusable(text) or self._known(text)
            if why is None:
                island.tasks.append(Task(text, place))
                self._add(text)
            else:
                island.rejects.append(Reject(place, *why, {"instruction": text}))

    def _known(self, text: str) -> tuple[str, str] | None:
        """Why a task is not new. ROUGE-L knows the letters a-z and digits only, so equal texts of other scripts are
        found by comparing them as they are."""
        if _plain(text) in self._exact:
            return "duplicate", "the same as an earlier task"
        near = self._pool.most_similar(text, self._rules.novelty)
        return None if near is None else ("similar", _told(near.score, self._texts[near.index]))

    def _add(self, text: str) -> None:
        self._pool.add(text)
        self._texts.append(text)
        self._exact.add(_plain(text))

    def finished(self) -> Island:
        """The island with as many tasks as were wanted; the wave in which they came together may have brought more."""
        island = self.island
        for task in island.tasks[self._rules.target :]:
            said = {"instruction": task.instruction}
            island.rejects.append(Reject(task.where, *_SURPLUS, said))
        del island.tasks[self._rules.target :]
        return island


def in_turn(islands: Sequence[Island]) -> Iterator[Task]:
    """The tasks of all islands in a fixed order: the first of each island, then the second of each, and so on."""
    most = max((len(island.tasks) for island in islands), default=0)
    for place in range(most):
        for island in islands:
            if place < len(island.tasks):
                yield island.tasks[place]


def sift(islands: Sequence[Island], novelty: float, most: int) -> tuple[list[Task], list[Reject]]:
    """The first `most` tasks of all islands in their fixed order, without those that another island's are too near to,
    and what is left out."""
    tasks = list(in_turn(islands))
    if len(islands) == 1:
        return tasks, []
    pool, kept, exact = Pool(), list[Task](), set[str]()
    rejects = []
    for task in tasks:
        said = {"instruction": task.instruction}
        if len(kept) == most:
            rejects.append(Reject(task.where, *_SURPLUS, said))
            continue
        near = pool.most_similar(task.instruction, novelty)
        if near is not None:
            detail = _told(near.score, kept[near.index].instruction)
            rejects.append(Reject(task.where, "similar", detail, said))
        elif _plain(task.instruction) in exact:
            detail = "the same as a task of another island"
            rejects.append(Reject(task.where, "duplicate", detail, said))
        else:
            pool.add(task.instruction)
            kept.append(task)
            exact.add(_plain(task.instruction))
    return kept, rejects


def failures_of(islands: Sequence[Island]) -> Counter[str]:
    """Requests for tasks that gave none, by reason."""
    return Counter(reject.reason for island in islands for reject in island.failures)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _told(score: float, other: str) -> str:
    return f"ROUGE-L {score:.3f} with: {other[:200]}"
