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
from zephyrctl.providers.base import Answer, Ask, Failure
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


@dataclass(frozen=True)
class TooFew:
    """A prompt with fewer than two completions, which is nothing to compare."""

    item: Seed
    detail: str

    def as_row(self) -> dict[str, str]:
        """The reject as the store keeps it."""
        row = {
            "prompt_id": self.item.row.prompt_id,
            "prompt": [m.model_dump() for m in self.item.row.prompt],
        }
        return {
            "where": self.item.where,
            "reason": "too_few_completions",
            "detail": self.detail,
            "row": canonical(row),
        }


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


def complete(
    items: Sequence[Seed], pool: Sequence[Seat], settings: Settings, ask: AskAll, tally: Tally
) -> list[tuple[Seed, list[Completion], list[str]]]:
    """For each prompt its completions in the order of the pool, and why others were left out."""
    draws = draws_of(pool)
    asks = [
        (seat, _completion_ask(item, seat, draw, settings))
        for item in items
        for seat, draw in zip(pool, draws, strict=True)
    ]
    replies = iter(ask(asks, "completions"))
    answered = []
    for item in items:
        kept: list[Completion] = []
        lost: list[str] = []
        for seat, draw in zip(pool, draws, strict=True):
            reply = next(replies)
            found = trouble(reply)
            tally.completions_asked += 1
            if found is not None or isinstance(reply, Failure):
                reason, detail = found or ("failed", "")
                tally.left_out[reason] += 1
                lost.append(f"{seat.label} {reason} ({detail})")
                continue
            tally.completions_kept += 1
            kept.append(
                Completion(
                    completion_id=completion_id(seat.label, draw, reply.text),
                    model=seat.label,
                    text=reply.text,
                    finish_reason=reply.finish_reason,
                )
            )
        answered.append((item, kept, lost))
    return answered


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
    for identity, text in texts.items():
        request = ultrafeedback.overall_prompt(item.row.prompt, text)
        made.append(Judgement("overall", "overall", (identity,), request))
    return made


def judge(
    wanted: Sequence[Judgement], teacher: Seat, settings: Settings, ask: AskAll, tally: Tally
) -> list[list[Parsed]]:
    """The parsed reply to each request, in the same order.

    A reply in which anything is unreadable is asked for again, up to `judge_draws` draws in all; the reply
    with the fewest unreadable parts is taken whole, the earliest of equals. What stays unreadable is missing,
    with its reason.
    """
    best: list[list[Parsed] | None] = [None] * len(wanted)
    open_ = list(range(len(wanted)))
    for draw in range(settings.judge_draws):
        if not open_:
            break
        task = "judgements" if draw == 0 else f"judgements asked again ({draw})"
        asks = [(teacher, _judge_ask(wanted[i], teacher, settings, draw)) for i in open_]
        tally.judge_calls += len(asks)
        tally.asked_again += len(asks) if draw else 0
        for i, reply in zip(open_, ask(asks, task), strict=True):
            parsed = _read(wanted[i], reply)
            before = best[i]
            if before is None or _unread(parsed) < _unread(before):
                best[i] = parsed
        open_ = [i for i in open_ if _unread(best[i] or []) > 0]
    return [parsed or [] for parsed in best]


def _unread(parsed: Sequence[Parsed]) -> int:
    return sum(p.failed for p in parsed)


def _judge_ask(judgement: Judgement, teacher: Seat, settings: Settings, draw: int) -> Ask:
    sampling = teacher.sampling(
        temperature=settings.judge_temperature if draw == 0 else settings.retry_temperature,
        max_tokens=settings.judge_max_tokens,
        seed=row_seed(settings.seed, hashlib.sha256(judgement.request.encode()).hexdigest(), draw),
    )
    return Ask((Message(role="user", content=judgement.request),), sampling, draw, judgement.kind)


def _read(judgement: Judgement, reply: Answer | Failure) -> list[Parsed]:
    found = trouble(reply)
    if found is not None or isinstance(reply, Failure):
        reason, detail = found or ("failed", "")
        return [Parsed(reason=f"{reason}: {detail}") for _ in judgement.shown]
    return judgement.parse(reply.text)


def rated(
    completions: Sequence[Completion],
    wanted: Sequence[Judgement],
    parsed: Sequence[Sequence[Parsed]],
    tally: Tally,
) -> list[Completion]:
    """The completions with their ratings, each bound by completion_id."""
    ratings: dict[str, list[Rating]] = {c.completion_id: [] for c in completions}
    overall: dict[str, Parsed] = {}
    for judgement, results in zip(wanted, parsed, strict=True):
        for position, (identity, result) in enumerate(zip(judgement.shown, results, strict=True), 1):
            tally.count(result)
            if judgement.kind == "overall":
                overall[identity] = result
            else:
                ratings[identity].append(_rating(judgement.aspect, result, position))
    return [
        c.model_copy(update=_scores(ratings[c.completion_id], overall[c.completion_id])) for c in completions
    ]


def _rating(aspect: str, result: Parsed, position: int) -> Rating:
    return Rating(
        aspect=aspect,
        value=result.value,
        rationale=result.rationale,
        reason=result.reason,
        position=position,
    )


def _scores(ratings: list[Rating], overall: Parsed) -> Mapping[str, object]:
    return {"ratings": ratings, "overall": overall.value, "critique": overall.rationale}


def rate_chunk(
    items: Sequence[Seed],
    pool: Sequence[Seat],
    teacher: Seat,
    settings: Settings,
    ask: AskAll,
    tally: Tally,
) -> list[FeedbackRow | TooFew]:
    """A feedback row for each prompt, in the same order, or why there is none."""
    answered = complete(items, pool, settings, ask, tally)
    comparable = [(item, kept) for item, kept, _ in answered if len(kept) >= 2]
    requests = [judgements(item, kept, settings) for item, kept in comparable]
    flat = judge([j for group in requests for j in group], teacher, settings, ask, tally)
    replies = iter(flat)
    rows: dict[int, FeedbackRow] = {}
    for (item, kept), group in zip(comparable, requests, strict=True):
        results = [next(replies) for _ in group]
        rows[id(item)] = FeedbackRow(
            prompt_id=item.row.prompt_id,
            prompt=item.row.prompt,
            completions=rated(kept, group, results, tally),
            judge=teacher.label,
            source=item.row.source,
        )
    return [
        rows.get(id(item)) or TooFew(item, "; ".join(lost) or "the pool gave one completion")
        for item, _, lost in answered
    ]
