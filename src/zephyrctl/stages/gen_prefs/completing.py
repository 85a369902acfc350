"""The pool answers: for each prompt its completions, and why others are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat, trouble
from zephyrctl.providers.base import UNPAID, Answer, Ask, Failure
from zephyrctl.records import Completion, row_seed
from zephyrctl.stages.gen_prefs.answered import Answered, AskAll, completion_id


@dataclass(frozen=True)
class Answering:
    """What of the stage's config decides the completions."""

    seed: int
    temperature: float
    top_p: float
    max_tokens: int


def draws_of(pool: Sequence[Seat]) -> list[int]:
    """Each member's draw number: a model that sits in the pool twice gives two different samples."""
    seen: Counter[str] = Counter()
    draws = []
    for seat in pool:
        draws.append(seen[seat.label])
        seen[seat.label] += 1
    return draws


def complete(items: Sequence[Seed], pool: Sequence[Seat], settings: Answering, ask: AskAll) -> list[Answered]:
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


def _completion_ask(item: Seed, seat: Seat, draw: int, settings: Answering) -> Ask:
    sampling = seat.sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        seed=row_seed(settings.seed, item.row.prompt_id, "completion", draw),
    )
    return Ask(tuple(item.row.prompt), sampling, draw, "completion")
