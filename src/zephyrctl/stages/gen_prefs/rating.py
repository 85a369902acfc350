"""Completions and their ratings, for a chunk of prompts at a time.

Requests go out in waves: all completions, then all judgements, then the unreadable judgements again. A rating
is bound to its completion by completion_id: the order shown is drawn by hash for each aspect, noted as
`position`, and undone by label.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat, trouble
from zephyrctl.config import canonical
from zephyrctl.judges import ultrafeedback
from zephyrctl.judges.base import NOT_APPLICABLE, Parsed
from zephyrctl.providers.base import UNPAID, Answer, Ask, Failure
from zephyrctl.records import (
    Completion,
    FeedbackRow,
    Message,
    Rating,
    row_seed,
)

AskAll = Callable[[Sequence[tuple[Seat, Ask]], str], Sequence[Answer | Failure]]
"""Asks several models: (who, what) pairs and a task name in, replies in the same order out."""


@dataclass(frozen=True)
class Settings:
    """What of the stage's config decides answers and ratings."""

    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    aspects: tuple[str, ...]
    judge_temperature: float
    retry_temperature: float
    judge_draws: int
    judge_max_tokens: int
    overall: bool = True


@dataclass(frozen=True)
class Judgement:
    """One request to the judge: an aspect over completions in the order shown, or the overall score of one.

    `shown` holds completion ids; a reply's n-th result belongs to the n-th of them.
    """

    kind: Literal["aspect", "overall"]
    aspect: str
    shown: tuple[str, ...]
    request: str

    def parse(self, reply: str) -> list[Parsed]:
        """One result for each text shown, in the order shown."""
        if self.kind == "overall":
            return [ultrafeedback.parse_overall(reply)]
        return ultrafeedback.parse_aspect(reply, len(self.shown), self.aspect)


@dataclass
class Tally:
    """Counts that add up: asked = kept + left out (by reason); ratings = rated + not applicable + unscored
    (by reason)."""

    completions_asked: int = 0
    completions_kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    ratings_asked: int = 0
    rated: int = 0
    not_applicable: int = 0
    unscored: Counter[str] = field(default_factory=Counter)
    judge_calls: int = 0
    asked_again: int = 0

    def count(self, parsed: Parsed) -> None:
        """Counts one rating."""
        self.ratings_asked += 1
        if parsed.value is not None:
            self.rated += 1
        elif parsed.reason == NOT_APPLICABLE:
            self.not_applicable += 1
        else:
            self.unscored[(parsed.reason or "unreadable").split(":")[0]] += 1

    def add(self, other: Tally) -> None:
        """Takes over the counts of another one."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class Judged:
    """What came of one judgement: the best reading of up to `draws` replies; None = a reply is not paid for."""

    parsed: list[Parsed] | None
    draws: int


@dataclass
class Answered:
    """A prompt's completions in the order of the pool, and why others are missing; `unpaid` = some are not paid
    for."""

    item: Seed
    kept: list[Completion] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    unpaid: bool = False


@dataclass(frozen=True)
class Unfinished:
    """A prompt some of whose calls are not paid for, in a run that only replays the ledger."""

    item: Seed

    def as_row(self) -> dict[str, str]:
        """The reject as the store keeps it."""
        return reject(self.item, UNPAID, "not all of its calls are in the ledger")


@dataclass(frozen=True)
class TooFew:
    """A prompt with fewer than two completions, which is nothing to compare."""

    item: Seed
    detail: str

    def as_row(self) -> dict[str, str]:
        """The reject as the store keeps it."""
        return reject(self.item, "too_few_completions", self.detail)


Outcome = FeedbackRow | TooFew | Unfinished
"""What becomes of a prompt."""


def reject(item: Seed, reason: str, detail: str) -> dict[str, str]:
    """A prompt that gives no row, as the store keeps it."""
    row = {"prompt_id": item.row.prompt_id, "prompt": [m.model_dump() for m in item.row.prompt]}
    return {"where": item.where, "reason": reason, "detail": detail, "row": canonical(row)}


def completion_id(model: str, draw: int, text: str) -> str:
    """sha256 of model, draw and text: equal texts of two models are two completions."""
    return hashlib.sha256(canonical([model, draw, text]).encode("utf-8", "surrogatepass")).hexdigest()


def shown_order(ids: Sequence[str], seed: int, prompt_id: str, aspect: str) -> list[str]:
    """The order in which the judge sees completions for one aspect: by hash, so independent of the order of
    the pool."""
    return sorted(ids, key=lambda i: (row_seed(seed, prompt_id, aspect, i), i))


def draws_of(pool: Sequence[Seat]) -> list[int]:
    """Each member's draw number: a model that sits in the pool twice gives two different samples."""
    seen: Counter[str] = Counter()
    draws = []
    for seat in pool:
        draws.append(seen[seat.label])
        seen[seat.label] += 1
    return draws


def complete(items: Sequence[Seed], pool: Sequence[Seat], settings: Settings, ask: AskAll) -> list[Answered]:
    """For each prompt its completions, and why others were left out."""
    draws = draws_of(pool)
    asks = [
        (seat, _completion_ask(item, seat, draw, settings))
        for item in items
        for seat, draw in zip(pool, draws, strict=True)
    ]
    replies = iter(ask(asks, "completions"))
    answered = []
    for item in items:
        found = Answered(item)
        for seat, draw in zip(pool, draws, strict=True):
            _take(found, seat, draw, next(replies))
        answered.append(found)
    return answered


def _take(found: Answered, seat: Seat, draw: int, reply: Answer | Failure) -> None:
    problem = trouble(reply)
    if problem is not None or isinstance(reply, Failure):
        reason, detail = problem or ("failed", "")
        found.unpaid = found.unpaid or reason == UNPAID
        found.reasons[reason] += 1
        found.lost.append(f"{seat.label} {reason} ({detail})")
        return
    found.kept.append(
        Completion(
            completion_id=completion_id(seat.label, draw, reply.text),
            model=seat.label,
            text=reply.text,
            finish_reason=reply.finish_reason,
        )
    )


def _completion_ask(item: Seed, seat: Seat, draw: int, settings: Settings) -> Ask:
    sampling = seat.sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        seed=row_seed(settings.seed, item.row.prompt_id, "completion", draw),
    )
    return Ask(tuple(item.row.prompt), sampling, draw, "completion")


def judgements(item: Seed, completions: Sequence[Completion], settings: Settings) -> list[Judgement]:
    """The requests that rate a prompt's completions: one for each aspect over all of them, one overall for
    each."""
    texts = {c.completion_id: c.text for c in completions}
    made = []
    for aspect in settings.aspects:
        order = shown_order(list(texts), settings.seed, item.row.prompt_id, aspect)
        request = ultrafeedback.aspect_prompt(item.row.prompt, [texts[i] for i in order], aspect)
        made.append(Judgement("aspect", aspect, tuple(order), request))
    for identity, text in texts.items() if settings.overall else ():
        request = ultrafeedback.overall_prompt(item.row.prompt, text)
        made.append(Judgement("overall", "overall", (identity,), request))
    return made


def judge(wanted: Sequence[Judgement], teacher: Seat, settings: Settings, ask: AskAll) -> list[Judged]:
    """What came of each request, in the same order.

    A reply in which anything is unreadable is asked for again, up to `judge_draws` draws in all; the reply
    with the fewest unreadable parts is taken whole, the earliest of equals. What stays unreadable is missing,
    with its reason.
    """
    best: list[Judged] = [Judged([], 0) for _ in wanted]
    open_ = list(range(len(wanted)))
    for draw in range(settings.judge_draws):
        if not open_:
            break
        task = "judgements" if draw == 0 else f"judgements asked again ({draw})"
        asks = [(teacher, _judge_ask(wanted[i], teacher, settings, draw)) for i in open_]
        going_on = []
        for i, reply in zip(open_, ask(asks, task), strict=True):
            if isinstance(reply, Failure) and reply.reason == UNPAID:
                best[i] = Judged(None, draw)
                continue
            parsed, before = _read(wanted[i], reply), best[i].parsed
            if draw > 0 and before is not None and _unread(before) <= _unread(parsed):
                parsed = before
            best[i] = Judged(parsed, draw + 1)
            if _unread(parsed) > 0:
                going_on.append(i)
        open_ = going_on
    return best


def _unread(parsed: Sequence[Parsed]) -> int:
    return sum(p.failed for p in parsed)


def _judge_ask(judgement: Judgement, teacher: Seat, settings: Settings, draw: int) -> Ask:
    sampling = teacher.sampling(
        temperature=settings.judge_temperature if draw == 0 else settings.retry_temperature,
        max_tokens=settings.judge_max_tokens,
        seed=row_seed(settings.seed, hashlib.sha256(judgement.request.encode()).hexdigest(), draw),
    )
    purpose = judgement.kind if draw == 0 else f"{judgement.kind} again"
    return Ask((Message(role="user", content=judgement.request),), sampling, draw, purpose)


def _read(judgement: Judgement, reply: Answer | Failure) -> list[Parsed]:
    found = trouble(reply)
    if found is not None or isinstance(reply, Failure):
        reason, detail = found or ("failed", "")
        return [Parsed(reason=f"{reason}: {detail}") for _ in judgement.shown]
    return judgement.parse(reply.text)


def rated(
    completions: Sequence[Completion],
    wanted: Sequence[Judgement],
    judged: Sequence[Sequence[Parsed]],
    tally: Tally,
) -> list[Completion]:
    """The completions with their ratings, each bound by completion_id."""
    ratings: dict[str, list[Rating]] = {c.completion_id: [] for c in completions}
    overall: dict[str, Parsed] = {}
    for judgement, results in zip(wanted, judged, strict=True):
        for position, (identity, result) in enumerate(zip(judgement.shown, results, strict=True), 1):
            tally.count(result)
            if judgement.kind == "overall":
                overall[identity] = result
            else:
                ratings[identity].append(_rating(judgement.aspect, result, position))
    return [
        c.model_copy(update=_scores(ratings[c.completion_id], overall.get(c.completion_id)))
        for c in completions
    ]


def _rating(aspect: str, result: Parsed, position: int) -> Rating:
    return Rating(
        aspect=aspect,
        value=result.value,
        rationale=result.rationale,
        reason=result.reason,
        position=position,
    )


def _scores(ratings: list[Rating], overall: Parsed | None) -> Mapping[str, object]:
    if overall is None:
        return {"ratings": ratings}
    return {"ratings": ratings, "overall": overall.value, "critique": overall.rationale}


def rate_chunk(
    items: Sequence[Seed],
    pool: Sequence[Seat],
    teacher: Seat,
    settings: Settings,
    ask: AskAll,
    tally: Tally,
) -> list[Outcome]:
    """A feedback row for each prompt, in the same order, or why there is none. Prompts that are not paid for to
    the end are counted nowhere."""
    answered = complete(items, pool, settings, ask)
    wanted = [
        judgements(a.item, a.kept, settings) if len(a.kept) >= 2 and not a.unpaid else [] for a in answered
    ]
    judged = iter(judge([one for group in wanted for one in group], teacher, settings, ask))
    return [
        _outcome(a, group, [next(judged) for _ in group], teacher, tally)
        for a, group in zip(answered, wanted, strict=True)
    ]


def _outcome(
    answered: Answered, wanted: Sequence[Judgement], judged: Sequence[Judged], teacher: Seat, tally: Tally
) -> Outcome:
    results = [one.parsed for one in judged if one.parsed is not None]
    if answered.unpaid or len(results) < len(wanted):
        return Unfinished(answered.item)
    tally.completions_asked += len(answered.kept) + answered.reasons.total()
    tally.completions_kept += len(answered.kept)
    tally.left_out.update(answered.reasons)
    if len(answered.kept) < 2:
        return TooFew(answered.item, "; ".join(answered.lost) or "the pool gave one completion")
    tally.judge_calls += sum(one.draws for one in judged)
    tally.asked_again += sum(max(0, one.draws - 1) for one in judged)
    row = answered.item.row
    return FeedbackRow(
        prompt_id=row.prompt_id,
        prompt=row.prompt,
        completions=rated(answered.kept, wanted, results, tally),
        judge=teacher.label,
        source=row.source,
    )
