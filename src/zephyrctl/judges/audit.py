"""A judge's habits, read off its ratings: what place, length and author do to a rating, and how far the judge agrees
with itself and with others. Pure; one row at a time, in any order.

Counts and means are of all rows. Tests and deciles are of at most `sample.MOST` prompts, chosen by hash, so that memory
is bounded and shards give what one process gives.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.judges.agreement import Agreement, best_of, share
from zephyrctl.judges.audit_report import AuditReport
from zephyrctl.judges.base import NOT_APPLICABLE
from zephyrctl.judges.effects import family_effect, length_effect, opposite
from zephyrctl.judges.exact import fixed, unfixed
from zephyrctl.judges.families import family_of
from zephyrctl.judges.merit import merit_of
from zephyrctl.judges.permutation import Profile, places
from zephyrctl.judges.sample import MOST, Merit, Sample, Sampled, Shown, mean_of_aspects
from zephyrctl.records import Completion, FeedbackRow, SecondOpinion

OVERALL = "overall"
MEAN = "mean"
RETEST = "retest"


@dataclass
class _Rates:
    """What became of the ratings of one aspect."""

    rated: int = 0
    total: int = 0
    not_applicable: int = 0
    unread: Counter[str] = field(default_factory=Counter)

    def add(self, value: float | None, reason: str | None) -> None:
        if value is not None:
            self.rated += 1
            self.total += fixed(value)
        elif reason == NOT_APPLICABLE:
            self.not_applicable += 1
        else:
            self.unread[(reason or "unreadable").split(":")[0]] += 1

    def as_dict(self) -> dict[str, Any]:
        asked = self.rated + self.not_applicable + self.unread.total()
        return {
            "asked": asked,
            "rated": self.rated,
            "not_applicable": self.not_applicable,
            "unread": dict(sorted(self.unread.items())),
            "parse_rate": share(asked - self.unread.total(), asked),
            "mean": share(unfixed(self.total), self.rated),
        }


@dataclass
class _Place:
    """The ratings given in one place."""

    ratings: int = 0
    total: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"ratings": self.ratings, "mean": share(unfixed(self.total), self.ratings)}


@dataclass
class _Source:
    """What the scores of one kind come to: rows with a best text and with two best, and the pairs of a best text with
    a lower one, by which of them is longer."""

    rows: int = 0
    ties: int = 0
    longer: int = 0
    shorter: int = 0
    equal: int = 0

    def add(self, scores: Sequence[float | None], lengths: Sequence[int]) -> None:
        if sum(s is not None for s in scores) < 2:
            return
        best = best_of(scores)
        self.rows += 1
        self.ties += len(best) > 1
        for top in best:
            for i, score in enumerate(scores):
                if score is None or i in best:
                    continue
                self.longer += lengths[top] > lengths[i]
                self.shorter += lengths[top] < lengths[i]
                self.equal += lengths[top] == lengths[i]

    def longer_dict(self) -> dict[str, Any]:
        pairs = self.longer + self.shorter
        return {"pairs": pairs, "agrees": share(self.longer, pairs), "equal_length": self.equal}


class Audit:
    """Takes feedback rows of one judge and reports its habits."""

    def __init__(self, judge: str, *, merit: Merit | None = None, most: int = MOST) -> None:
        """`judge`: its label; `merit`: what a text is worth, where that can be computed (unset = `merit_of`); `most`:
        prompts that the tests look at."""
        self.judge = judge
        self._rows = self._completions = 0
        self._rates: dict[str, _Rates] = {}
        self._overall = _Rates()
        self._places: dict[str, dict[int, _Place]] = {}
        self._sources: dict[str, _Source] = defaultdict(_Source)
        self._both = self._differ = self._against = self._ordered = 0
        self._agreement: dict[str, Agreement] = {}
        self._sample = Sample(most, merit or merit_of(judge))

    def add(self, row: FeedbackRow) -> None:
        """Takes one row in."""
        self._rows += 1
        self._completions += len(row.completions)
        for completion in row.completions:
            self._overall.add(completion.overall, None)
            for rating in completion.ratings:
                if rating.aspect == OVERALL:
                    continue  # a note on the overall score, which is counted above
                self._rates.setdefault(rating.aspect, _Rates()).add(rating.value, rating.reason)
                if rating.position is not None and rating.value is not None:
                    place = self._places.setdefault(rating.aspect, {}).setdefault(rating.position, _Place())
                    place.ratings += 1
                    place.total += fixed(rating.value)
        self._compare(row.completions)
        for judge, why in dict.fromkeys((o.judge, o.why) for c in row.completions for o in c.opinions):
            self._agree(row.completions, judge, why)
        self._sample.add(row)

    def _compare(self, completions: Sequence[Completion]) -> None:
        lengths = [len(c.text) for c in completions]
        means = [mean_of_aspects(c) for c in completions]
        overall = [c.overall for c in completions]
        self._sources[MEAN].add(means, lengths)
        self._sources[OVERALL].add(overall, lengths)
        for aspect in dict.fromkeys(r.aspect for c in completions for r in c.ratings):
            self._sources[aspect].add([_rating(c.ratings, aspect) for c in completions], lengths)
        one, other = best_of(means), best_of(overall)
        if one and other:
            self._both += 1
            self._differ += not one & other
            against, ordered = opposite(means, overall)
            self._against += against
            self._ordered += ordered

    def _agree(self, completions: Sequence[Completion], judge: str, why: str) -> None:
        name = RETEST if why == RETEST else judge
        found = self._agreement.setdefault(name, Agreement())
        opinions = [
            next((o for o in c.opinions if (o.judge, o.why) == (judge, why)), None) for c in completions
        ]
        first, second = _compared(completions, opinions)
        found.row(why, first, second)
        for completion, opinion in zip(completions, opinions, strict=True):
            if opinion is None:
                continue
            if opinion.overall is not None or completion.overall is not None:
                found.overall.add(completion.overall, opinion.overall)
            for rating in completion.ratings:
                if any(r.aspect == rating.aspect for r in opinion.ratings):
                    found.aspects.add(rating.value, _rating(opinion.ratings, rating.aspect))

    def report(self) -> AuditReport:
        """What the rows so far show."""
        prompts = self._sample.prompts()
        sources = [name for name in (MEAN, OVERALL) if self._sources[name].rows]
        own = family_of(self.judge)
        ratings = {name: rates.as_dict() for name, rates in sorted(self._rates.items())}
        if self._overall.rated:
            ratings[OVERALL] = self._overall.as_dict()
        body = {
            "judge": self.judge,
            "rows": self._rows,
            "completions": self._completions,
            "tested_prompts": len(prompts),
            "ratings": ratings,
            "position": self._position(prompts),
            "length": _joined({name: length_effect(prompts, name) for name in sources}),
            "family": None
            if own is None
            else {"judge": own, **{name: family_effect(prompts, name, own, family_of) for name in sources}},
            "ties": {
                name: {"rows": s.rows, "tied": s.ties, "rate": share(s.ties, s.rows)}
                for name, s in sorted(self._sources.items())
                if s.rows
            },
            "disagreement": {
                "rows": self._both,
                "best_differs": share(self._differ, self._both),
                "pairs": self._ordered,
                "opposite": share(self._against, self._ordered),
            },
            "longer": {name: self._sources[name].longer_dict() for name in sources},
            "agreement": {name: found.as_dict() for name, found in sorted(self._agreement.items())},
        }
        return AuditReport(body)

    def _position(self, prompts: Sequence[Sampled]) -> dict[str, Any] | None:
        """Ratings by place, over all aspects and for each; None where the judge saw every text alone."""
        if not self._places:
            return None
        together: dict[int, _Place] = defaultdict(_Place)
        for by_place in self._places.values():
            for place, found in by_place.items():
                together[place].ratings += found.ratings
                together[place].total += found.total
        whole = _tested("position", (p.together for p in prompts))
        return {
            "places": _by_place(together),
            **_profile_dict(whole),
            "aspects": {
                aspect: {
                    "places": _by_place(by_place),
                    **_profile_dict(
                        _tested(f"position {aspect}", (p.by_aspect.get(aspect) for p in prompts))
                    ),
                }
                for aspect, by_place in sorted(self._places.items())
            },
        }


def _tested(name: str, shown: Iterable[Shown | None]) -> Profile:
    found = [one for one in shown if one is not None]
    return places([one.profile for one in found], math.fsum(one.weight for one in found), name)


def _by_place(found: dict[int, _Place]) -> dict[str, Any]:
    return {str(place): found[place].as_dict() for place in sorted(found)}


def _profile_dict(found: Profile) -> dict[str, Any]:
    trend = None if found.trend is None else round(found.trend, 6)
    return {
        "first_less_last": trend,
        "p_trend": found.p_trend,
        "p_any": found.p_any,
        "p": found.p,
        "prompts": found.blocks,
    }


def _joined(by_source: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The effect for each score, and one p-value for all of them (Bonferroni)."""
    found = [p for one in by_source.values() if (p := one["p"]) is not None]
    return {"p": min(1.0, len(found) * min(found)) if found else None, **by_source}


def _rating(ratings: Sequence[Any], aspect: str) -> float | None:
    return next((r.value for r in ratings if r.aspect == aspect), None)


def _compared(
    completions: Sequence[Completion], opinions: Sequence[SecondOpinion | None]
) -> tuple[list[float | None], list[float | None]]:
    """The scores of both rounds: overall where the second round has any, else the mean of the aspects."""
    if any(o is not None and o.overall is not None for o in opinions):
        return [c.overall for c in completions], [None if o is None else o.overall for o in opinions]
    means = [
        None
        if o is None or not (v := [r.value for r in o.ratings if r.value is not None])
        else math.fsum(v) / len(v)
        for o in opinions
    ]
    return [mean_of_aspects(c) for c in completions], means
