"""What is counted on the way from feedback to pairs, and how it is shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.events import Table
from zephyrctl.stages.binarize.candidates import Asked
from zephyrctl.stages.binarize.select import Outcome

DELIBERATE = ("flagged", "source", "in_suite")
"""Reasons that were asked for: prompts dropped for them are no sign of bad feedback."""


@dataclass
class Lengths:
    """Lengths of chosen and rejected answers in one unit. Memory grows with the number of different lengths only."""

    chosen: Counter[int] = field(default_factory=Counter)
    rejected: Counter[int] = field(default_factory=Counter)
    longer: int = 0
    equal: int = 0

    def add(self, chosen: int, rejected: int) -> None:
        """Counts one pair."""
        self.chosen[chosen] += 1
        self.rejected[rejected] += 1
        self.longer += chosen > rejected
        self.equal += chosen == rejected

    def summary(self) -> dict[str, Any]:
        """Mean and median of both sides, and the shares of pairs whose chosen answer is longer, and as long."""
        pairs = max(1, self.chosen.total())
        return {
            "chosen": {"mean": _mean(self.chosen), "median": _median(self.chosen)},
            "rejected": {"mean": _mean(self.rejected), "median": _median(self.rejected)},
            "chosen_longer": round(self.longer / pairs, 4),
            "equal": round(self.equal / pairs, 4),
        }


@dataclass
class Funnel:
    """Counts from prompts to pairs.

    They add up: prompts = prompts_paired + dropped (by reason); completions = scored + unscored + empty + flagged +
    barred (those of prompts that were left out as asked for).
    """

    prompts: int = 0
    paired: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    completions: int = 0
    scored: int = 0
    unscored: int = 0
    empty: int = 0
    flagged: int = 0
    ratings: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    mended: int = 0
    pairs: int = 0
    ties: int = 0
    shared_best: int = 0
    wins: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    characters: Lengths = field(default_factory=Lengths)
    words: Lengths = field(default_factory=Lengths)
    aspects: set[str] = field(default_factory=set)

    def add(self, asked: Asked, out: Outcome) -> None:
        """Counts one prompt."""
        self.prompts += 1
        self.completions += len(asked.candidates)
        self.scored += out.scored
        self.unscored += out.unscored
        self.empty += out.empty
        self.flagged += out.flagged
        self.ratings += out.ratings
        if out.missing:
            self.missing.update(out.missing)
        self.mended += out.mended
        self.shared_best += out.shared_best
        if out.best is None:
            self.dropped[str(out.reason)] += 1
            return
        self.paired += 1
        self._count_pairs(asked, out)

    def _count_pairs(self, asked: Asked, out: Outcome) -> None:
        sizes: dict[int, tuple[int, int]] = {}
        for pair in out.pairs:
            for place in (pair.chosen, pair.rejected):
                if place not in sizes:
                    text = asked.candidates[place].text
                    sizes[place] = len(text), len(text.split())
            chosen, rejected = sizes[pair.chosen], sizes[pair.rejected]
            self.pairs += 1
            self.ties += pair.tie
            self.wins[asked.candidates[pair.chosen].model] += 1
            self.losses[asked.candidates[pair.rejected].model] += 1
            self.characters.add(chosen[0], rejected[0])
            self.words.add(chosen[1], rejected[1])

    @property
    def barred(self) -> int:
        """Completions of prompts that were left out as asked for."""
        return self.completions - self.scored - self.unscored - self.empty - self.flagged

    def as_counts(self) -> dict[str, Any]:
        """The counts for the manifest."""
        return {
            "prompts": self.prompts,
            "prompts_paired": self.paired,
            "prompts_with_shared_best": self.shared_best,
            "dropped": dict(sorted(self.dropped.items())),
            "completions": self.completions,
            "completions_scored": self.scored,
            "completions_unscored": self.unscored,
            "completions_empty": self.empty,
            "completions_flagged": self.flagged,
            "completions_barred": self.barred,
            "ratings": self.ratings,
            "ratings_missing": dict(sorted(self.missing.items())),
            "scores_mended": self.mended,
            "pairs": self.pairs,
            "pairs_tied": self.ties,
        }

    def longer_agrees(self) -> float:
        """The share of pairs that a judge who picks the longer answer (in characters) would order the same way.

        Of answers of equal length it picks one by chance, so these count half.
        """
        return (self.characters.longer + self.characters.equal / 2) / max(1, self.pairs)

    def as_profile(self) -> dict[str, Any]:
        """What the pairs are like, for the manifest: lengths, and how often each model was chosen and rejected."""
        return {
            "lengths": {"characters": self.characters.summary(), "words": self.words.summary()},
            "longer_agrees": round(self.longer_agrees(), 4),
            "models": {
                model: {"chosen": self.wins[model], "rejected": self.losses[model]}
                for model in sorted(self.wins.keys() | self.losses.keys())
            },
        }

    def tables(self, score: str) -> list[Table]:
        """What people see: the funnel, the lengths, and how often each model was chosen and rejected."""
        return [self._steps(score), self._lengths(), self._models()]

    def _steps(self, score: str) -> Table:
        aside = [("barred with their prompt", self.barred), ("flagged", self.flagged), ("empty", self.empty)]
        steps = [
            ("prompts", self.prompts),
            ("completions", self.completions),
            *((f"completions {why}", n) for why, n in aside if n),
            (f"ratings found ({score})", self.ratings),
            *((f"ratings missing: {why}", n) for why, n in sorted(self.missing.items())),
            *([("overall scores of 10 taken for the 1 they were", self.mended)] if self.mended else []),
            (f"completions without a score ({score})", self.unscored),
            *((f"prompts dropped: {why}", n) for why, n in sorted(self.dropped.items())),
            ("prompts with pairs", self.paired),
            ("pairs", self.pairs),
            ("pairs of equal scores", self.ties),
        ]
        return Table(
            "from feedback to pairs", ("step", "count"), tuple((step, f"{n:,}") for step, n in steps)
        )

    def _lengths(self) -> Table:
        rows = []
        for unit, found in (("characters", self.characters.summary()), ("words", self.words.summary())):
            sides = [
                f"{found[side][what]:,g}" for side in ("chosen", "rejected") for what in ("mean", "median")
            ]
            rows.append((unit, *sides, f"{found['chosen_longer']:.1%}", f"{found['equal']:.1%}"))
        columns = ("", "chosen: mean", "median", "rejected: mean", "median", "chosen longer", "equal")
        return Table("lengths", columns, tuple(rows))

    def _models(self) -> Table:
        rows = []
        for model in sorted(self.wins.keys() | self.losses.keys()):
            won, lost = self.wins[model], self.losses[model]
            rows.append((model, f"{won:,}", f"{lost:,}", f"{won / (won + lost):.0%}"))
        return Table("by model", ("model", "chosen", "rejected", "chosen share"), tuple(rows))


def _mean(counts: Counter[int]) -> float:
    return round(sum(value * n for value, n in counts.items()) / max(1, counts.total()), 1)


def _median(counts: Counter[int]) -> float:
    """The middle value, or the mean of the two in the middle; 0 of nothing."""
    total, seen, middle = counts.total(), 0, []
    for value in sorted(counts):
        before, seen = seen, seen + counts[value]
        middle += [value for place in {(total - 1) // 2, total // 2} if before <= place < seen]
    return sum(middle) / max(1, len(middle))
