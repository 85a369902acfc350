"""Which completions become chosen and rejected. Pure: a prompt and a policy in, pairs or a reason out.

The highest score is chosen; the rejected one is drawn among lower ones (the ZEPHYR paper), or is the worst, the
nearest, the one at a quantile; or every strictly ordered pair is taken. Draws compare hashes of (seed, prompt, role,
completion), so a prompt's outcome depends on its content and the seed alone: not on the order of rows, on other rows,
or on how many processes work. The order of completions within a row matters to `best: first` alone.

Two texts are the same when they are equal after Unicode normalisation (NFC) with every run of white space as one
space and none at the ends. A completion without any other character takes no part.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from zephyrctl.records import row_seed
from zephyrctl.stages.binarize.barred import Barred
from zephyrctl.stages.binarize.candidates import Asked, Candidate
from zephyrctl.stages.binarize.scores import mended, ratings_wanted, score_of

Rule = Literal["random", "worst", "nearest", "quantile", "all-pairs"]
Ties = Literal["drop", "keep", "margin"]
Reason = Literal[
    "flagged",
    "source",
    "in_suite",
    "single_completion",
    "empty",
    "unscored",
    "same_text",
    "all_tied",
    "within_margin",
]

_DIGITS = 9
"""Means are sums of fractions: scores that agree to so many decimals are equal."""
_ROUNDING = 10.0**-_DIGITS
_PLAIN_RULES: tuple[Rule, ...] = ("random", "worst", "nearest", "all-pairs")
_GLANCE = 80
_NOTHING_BARRED = Barred()


@dataclass(frozen=True, slots=True)
class Policy:
    """How to pair. `margin` and `quantile` are set where `ties` and `rejected` say so, `weights` for a weighted score.

    `best` settles who is chosen of several with the highest score: `drawn` by the prompt's own seed among those that
    have somebody to be preferred to, or the `first` in stored order.
    """

    score: str = "overall"
    rejected: Rule = "random"
    ties: Ties = "drop"
    margin: float | None = None
    seed: int = 42
    quantile: float | None = None
    best: Literal["drawn", "first"] = "drawn"
    weights: Mapping[str, float] = field(default_factory=dict)


class Pairing(NamedTuple):
    """One pair: the places of both completions in the row, and their scores."""

    chosen: int
    rejected: int
    high: float
    low: float

    @property
    def tie(self) -> bool:
        """Whether both have the same score."""
        return _grid(self.high) == _grid(self.low)


@dataclass(slots=True)
class Outcome:
    """What became of one prompt: its pairs and the place of its best completion, or the reason why it has none.

    `flagged`, `empty` and `unscored` count completions that took no part, `scored` those that did (all four are 0 where
    the whole prompt is barred); `ratings` counts those that the score found,
    `missing` those that it did not, by why; `mended` counts overall scores that were a 1 stored as 10; `shared_best`:
    whether several completions had the highest score.
    """

    pairs: tuple[Pairing, ...] = ()
    best: int | None = None
    reason: Reason | None = None
    detail: str = ""
    flagged: int = 0
    empty: int = 0
    unscored: int = 0
    scored: int = 0
    ratings: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    mended: int = 0
    shared_best: bool = False


def parse_ties(text: str) -> tuple[Ties, float | None]:
    """`drop`, `keep` or `margin=X` as (rule, X).

    Raises ValueError for anything else; X is a finite number above 0.
    """
    if text == "drop":
        return "drop", None
    if text == "keep":
        return "keep", None
    margin = _number(text, "margin")
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"expected drop, keep or margin=X with X above 0, got '{text}'")
    return "margin", margin


def parse_rejected(text: str) -> tuple[Rule, float | None]:
    """`random`, `worst`, `nearest`, `all-pairs` or `quantile=Q` as (rule, Q).

    Raises ValueError for anything else; Q lies between 0 (the worst) and 1 (the nearest).
    """
    for rule in _PLAIN_RULES:
        if text == rule:
            return rule, None
    quantile = _number(text, "quantile")
    if not 0 <= quantile <= 1:
        raise ValueError(
            f"expected random, worst, nearest, all-pairs or quantile=Q from 0 to 1, got '{text}'"
        )
    return "quantile", quantile


def _number(text: str, name: str) -> float:
    """The number in `name=number`; NaN where there is none."""
    said, equals, number = text.partition("=")
    try:
        return float(number) if said == name and equals else math.nan
    except ValueError:
        return math.nan


def normalised(text: str) -> str:
    """A text as it is compared with others: NFC, every run of white space as one space, none at the ends."""
    return " ".join(_nfc(text).split())


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def same_text(one: str, other: str) -> bool:
    """Whether two texts, neither of them blank, are equal once normalised."""
    for word in (_first_word, _last_word):
        mine, theirs = word(one), word(other)
        if mine and theirs and mine != theirs and _nfc(mine) != _nfc(theirs):
            return False
    return normalised(one) == normalised(other)


def _first_word(text: str) -> str:
    """The first word, seen without going through the text; empty where it does not end soon enough."""
    words = text[:_GLANCE].split(None, 1)
    return words[0] if len(words) == 2 else ""


def _last_word(text: str) -> str:
    words = text[-_GLANCE:].rsplit(None, 1)
    return words[1] if len(words) == 2 else ""


def select(asked: Asked, policy: Policy, barred: Barred = _NOTHING_BARRED) -> Outcome:
    """The pairs that `policy` makes of a prompt's completions, or the reason why it makes none.

    `drop` pairs only with strictly lower scores, `margin` with scores lower by at least it, `keep` with any; never two
    texts that are the same, and nothing that is barred.
    """
    barred.meet(asked)
    if (why := barred.prompt(asked)) is not None:
        return Outcome(reason=why[0], detail=why[1])
    out = Outcome()
    full: dict[int, Candidate] = {}
    for place, candidate in enumerate(asked.candidates):
        if candidate.identity in barred.ids:
            out.flagged += 1
        elif not candidate.text or candidate.text.isspace():
            out.empty += 1
        else:
            full[place] = candidate
    out.ratings, out.missing = ratings_wanted(full.values(), policy.score, policy.weights)
    out.mended = sum([mended(c) for c in full.values()])
    scores = {n: s for n, c in full.items() if (s := score_of(c, policy.score, policy.weights)) is not None}
    out.scored, out.unscored = len(scores), len(full) - len(scores)
    why_few = _too_few(asked, full, scores)
    if why_few is not None:
        out.reason, out.detail = why_few
        return out
    _Pairer(asked, policy, barred, scores).settle(out)
    return out


def _too_few(
    asked: Asked, full: Mapping[int, Candidate], scores: Mapping[int, float]
) -> tuple[Reason, str] | None:
    everyone = asked.candidates
    if len(everyone) < 2:
        return "single_completion", "fewer than two completions"
    if len(full) < 2:
        empty = sum(not c.text or c.text.isspace() for c in everyone)
        reason: Reason = "empty" if len(everyone) - empty < 2 else "flagged"
        return reason, f"{len(full)} of {len(everyone)} completions can take part"
    if len(scores) < 2:
        return "unscored", f"{len(scores)} of {len(full)} completions have a score"
    return None


class _Pairer:
    """The scored completions of one prompt, and what may be paired among them."""

    def __init__(self, asked: Asked, policy: Policy, barred: Barred, scores: Mapping[int, float]) -> None:
        self.asked = asked
        self.policy = policy
        self.barred = barred
        self.scores = scores
        self.marks = {n: _grid(s) for n, s in scores.items()}
        # distances of rounded scores: half a step tells equal from unequal, two roundings stand between margins
        strictly = 0.5 * _ROUNDING
        margin = 0.0 if policy.margin is None else policy.margin - 1.5 * _ROUNDING
        self.least = 0.0 if policy.ties == "keep" else max(strictly, margin)

    def settle(self, out: Outcome) -> None:
        """Fills in the pairs, or the reason why there are none."""
        top = max(self.marks.values())
        best = [n for n, mark in self.marks.items() if mark == top]
        out.shared_best = len(best) > 1
        if self.policy.best == "first":
            best = best[:1]
        options = {n: below for n in best if (below := self.below(n))}
        if self.policy.rejected == "all-pairs":
            out.pairs = self.every()
        elif options:
            chosen = self.draw(list(options), "chosen")
            rejected = self.draw(self.wanted(options[chosen]), "rejected")
            out.pairs = (self.pairing(chosen, rejected),)
        if out.pairs:
            out.best = self.draw(list(options) or best, "chosen")
        else:
            out.reason, out.detail = self.why_none(best, top)

    def below(self, chosen: int) -> list[int]:
        """The completions that `chosen` may be preferred to."""
        one, mark = self.asked.candidates[chosen], self.marks[chosen]
        return [
            n
            for n, other in self.marks.items()
            if n != chosen
            and mark - other >= self.least
            and not self.barred.pair(one.identity, self.asked.candidates[n].identity)
            and not same_text(one.text, self.asked.candidates[n].text)
        ]

    def every(self) -> tuple[Pairing, ...]:
        """Every pair, the best first; the order does not depend on that of the completions."""
        rank = sorted(self.marks, key=lambda n: (-self.marks[n], self.asked.candidates[n].identity))
        pairs = []
        for chosen in rank:
            below = set(self.below(chosen))
            pairs += [self.pairing(chosen, n) for n in rank if n in below]
        return tuple(pairs)

    def wanted(self, below: Sequence[int]) -> list[int]:
        """Those of `below` whose score the policy rejects; all of them where it does not ask for one."""
        if self.policy.rejected == "random":
            return list(below)
        ladder = sorted(self.marks[n] for n in below)
        share = {"worst": 0.0, "nearest": 1.0}.get(self.policy.rejected, self.policy.quantile or 0.0)
        # the smallest score that at least this share of the scores does not exceed
        step = max(0, math.ceil(round(share * len(ladder), _DIGITS)) - 1)
        return [n for n in below if self.marks[n] == ladder[step]]

    def draw(self, places: Sequence[int], role: str) -> int:
        """One place, uniformly, by hash: adding or reordering other completions does not disturb the draw."""
        if len(places) == 1:
            return places[0]
        everyone, prompt = self.asked.candidates, self.asked.prompt_id

        def key(place: int) -> tuple[int, str]:
            identity = everyone[place].identity
            return row_seed(self.policy.seed, prompt, role, identity), identity

        return min(places, key=key)

    def pairing(self, chosen: int, rejected: int) -> Pairing:
        return Pairing(chosen, rejected, self.scores[chosen], self.scores[rejected])

    def why_none(self, best: Sequence[int], top: float) -> tuple[Reason, str]:
        low, policy = min(self.marks.values()), self.policy
        if top == low and policy.ties != "keep":
            return "all_tied", f"all {len(self.marks)} scored completions have {top:g}"
        if top - low < self.least:
            return "within_margin", f"scores {low:g} to {top:g} lie within {policy.margin:g}"
        everyone = self.asked.candidates
        if any(
            self.barred.pair(everyone[one].identity, everyone[n].identity) for one in best for n in self.marks
        ):
            return "flagged", "the pairs that could be made are flagged"
        return "same_text", "every completion that could be rejected says the same as the best"


def _grid(score: float) -> float:
    return round(score, _DIGITS)
