"""What the tests of a judge audit read: a sample of prompts by hash, each boiled down to a few numbers. Pure."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from sys import intern

from zephyrctl.judges.permutation import place_scores
from zephyrctl.records import Completion, FeedbackRow, Message

MOST = 10_000
"""Prompts that the tests look at, at most: those whose hash is lowest, so the same ones in any order of the rows."""
_SWEEPS = 60
_SETTLED = 1e-9

Merit = Callable[[Sequence[Message], str], float | None]
"""What a text is worth as the answer to a prompt, computed without a judge; None where it cannot be."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt's ratings summed by the place in which a text was shown, less what belongs to texts and aspects;
    and what turns such sums into points (the sum of squared place scores, with the same taken out)."""

    profile: tuple[float, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class Judged:
    """One completion: who wrote it, its characters, the mean of its aspects, its overall score.

    `same`: the number of the prompt's first completion with the same text, its own where it is the first. `merit`: what
    it is worth, where that can be computed: equal numbers, equally good texts.
    """

    model: str
    length: int
    mean: float | None
    overall: float | None
    same: int
    merit: float | None

    def score(self, source: str) -> float | None:
        """The score from `mean` or `overall`."""
        return self.mean if source == "mean" else self.overall


@dataclass(frozen=True, slots=True)
class Sampled:
    """One prompt. `together` takes all aspects as one, `by_aspect` each alone."""

    together: Shown | None
    by_aspect: Mapping[str, Shown]
    texts: tuple[Judged, ...]


@dataclass
class Sample:
    """The prompts with the lowest hashes."""

    most: int = MOST
    merit: Merit | None = None
    _heap: list[tuple[int, str, int, Sampled]] = field(default_factory=list)
    _taken: int = 0

    def add(self, row: FeedbackRow) -> None:
        """Takes a row in, unless `most` rows with lower hashes are there."""
        rank = -int.from_bytes(hashlib.sha256(row.prompt_id.encode("utf-8", "surrogatepass")).digest(), "big")
        if len(self._heap) == self.most and rank < self._heap[0][0]:
            return
        found = boiled_down(row, self.merit)
        # a prompt may be there twice: then the numbers decide, and equal ones may stand in any order
        numbers = hashlib.sha256(repr(found).encode("utf-8", "surrogatepass")).hexdigest()
        self._taken += 1
        entry = (rank, numbers, self._taken, found)
        if len(self._heap) < self.most:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def prompts(self) -> list[Sampled]:
        """The sample, in the order of the hashes."""
        return [entry[3] for entry in sorted(self._heap, reverse=True)]


def mean_of_aspects(completion: Completion) -> float | None:
    """The mean of the aspects that have a value; None where none has."""
    values = [r.value for r in completion.ratings if r.value is not None]
    return math.fsum(values) / len(values) if values else None


def boiled_down(row: FeedbackRow, merit: Merit | None = None) -> Sampled:
    """The few numbers of a row that tests need."""
    cells: dict[str, dict[int, tuple[int, float]]] = {}
    shown = 0
    for number, completion in enumerate(row.completions):
        for rating in completion.ratings:
            if rating.position is None:
                continue
            shown = max(shown, rating.position)
            if rating.value is not None:
                cells.setdefault(intern(rating.aspect), {})[number] = (rating.position, rating.value)
    texts = _texts(row, merit)
    if shown < 2 or not cells:
        return Sampled(None, {}, texts)
    by_aspect = _shown(cells, shown)
    profiles = zip(*(one.profile for one in by_aspect.values()), strict=True)
    together = Shown(tuple(map(math.fsum, profiles)), math.fsum(one.weight for one in by_aspect.values()))
    return Sampled(together, by_aspect, texts)


def _texts(row: FeedbackRow, merit: Merit | None) -> tuple[Judged, ...]:
    first: dict[str, int] = {}
    return tuple(
        Judged(
            model=intern(c.model),
            length=len(c.text),
            mean=mean_of_aspects(c),
            overall=c.overall,
            same=first.setdefault(c.text, number),
            merit=None if merit is None else merit(row.prompt, c.text),
        )
        for number, c in enumerate(row.completions)
    )


def _shown(cells: Mapping[str, Mapping[int, tuple[int, float]]], shown: int) -> dict[str, Shown]:
    """`cells`: for each aspect, place and rating by text."""
    scores = place_scores(shown)
    ratings = {aspect: {text: value for text, (_, value) in block.items()} for aspect, block in cells.items()}
    given = {
        aspect: {text: scores[place - 1] for text, (place, _) in block.items()}
        for aspect, block in cells.items()
    }
    rest, left = _less_effects(ratings), _less_effects(given)
    made = {}
    for aspect, block in cells.items():
        profile = [0.0] * shown
        for text, (place, _) in block.items():
            profile[place - 1] += rest[aspect][text]
        weight = sum(given[aspect][text] * left[aspect][text] for text in block)
        made[aspect] = Shown(tuple(round(value, 12) for value in profile), weight)
    return made


def _less_effects(cells: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
    """The values less the mean of their aspect and, where there are several aspects, less the mean of their text: what
    least squares leaves. One round is exact where every aspect has every text, else they are taken in turn until
    nothing moves."""
    left = {aspect: dict(block) for aspect, block in cells.items()}
    by_text: dict[int, list[dict[int, float]]] = {}
    for block in left.values():
        for text in block:
            by_text.setdefault(text, []).append(block)
    for _ in range(_SWEEPS):
        moved = 0.0
        for block in left.values():
            mean = sum(block.values()) / len(block)
            moved = max(moved, abs(mean))
            for text in block:
                block[text] -= mean
        if moved < _SETTLED or len(left) == 1:
            break
        for text, blocks in by_text.items():
            mean = sum(block[text] for block in blocks) / len(blocks)
            for block in blocks:
                block[text] -= mean
    return left
