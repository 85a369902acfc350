"""A language model as the rater: one request for each aspect over all completions of a prompt, one for the
overall score of each.

A rating is bound to its completion by completion_id: the order shown is drawn by hash for each aspect, noted as
`position`, and undone by label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.asking.estimate import Range, size, text_tokens
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat, trouble
from zephyrctl.asking.sketch import Sketch
from zephyrctl.judges import ultrafeedback
from zephyrctl.judges.base import Parsed, rubric_digests
from zephyrctl.providers.base import UNPAID, Answer, AnyProvider, Ask, Failure
from zephyrctl.records import Completion, Message, Rating, row_seed
from zephyrctl.stages.gen_prefs.answered import Answered, AskAll
from zephyrctl.stages.gen_prefs.tally import Tally

_SAMPLE = (Message(role="user", content="x"),)


@dataclass(frozen=True)
class Judging:
    """What of the stage's config decides the judge's requests."""

    seed: int
    aspects: tuple[str, ...]
    overall: bool
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


@dataclass(frozen=True)
class Judged:
    """What came of one judgement: the best reading of up to `draws` replies; None = a reply is not paid for."""

    parsed: list[Parsed] | None
    draws: int


class JudgeRater:
    """A teacher that reads the completions and rates them in words."""

    def __init__(self, teacher: Seat, settings: Judging) -> None:
        self.teacher = teacher
        self.settings = settings
        self.label = teacher.label

    def inputs(self) -> list[InputRef]:
        """What of the rater enters the step key: the teacher's weights, where it is a model of ours."""
        return self.teacher.inputs("teacher")

    def templates(self) -> dict[str, str]:
        """The hashes of the rubrics."""
        return rubric_digests()

    def providers(self) -> list[AnyProvider]:
        """Whom it asks."""
        return [self.teacher.provider]

    def close(self) -> None:
        """Lets go of the teacher."""
        self.teacher.close()

    def draw(self, sketch: Sketch, prompts: int, asked: Range, texts: Range, pool: int) -> None:
        """Sketches the judgements of `prompts` prompts with `pool` completions each; `asked` and `texts` are the
        tokens of all prompts and of all their completions."""
        sampling = self.teacher.sampling(
            temperature=self.settings.judge_temperature, max_tokens=self.settings.judge_max_tokens, seed=0
        )
        frames = [
            text_tokens(size(ultrafeedback.aspect_prompt(_SAMPLE, [""] * pool, aspect)))
            for aspect in self.settings.aspects
        ]
        calls = prompts * len(frames)
        sketch.add(
            "judge",
            self.teacher.provider,
            "aspect",
            calls=calls,
            most=calls * self.settings.judge_draws,
            prompts=(asked + texts) * len(frames) + sum(frames, Range()) * prompts,
            reply=sketch.reply(self.teacher.provider, Ask(_SAMPLE, sampling, purpose="aspect")),
        )
        if self.settings.overall:
            frame = text_tokens(size(ultrafeedback.overall_prompt(_SAMPLE, "")))
            sketch.add(
                "judge",
                self.teacher.provider,
                "overall",
                calls=prompts * pool,
                most=prompts * pool * self.settings.judge_draws,
                prompts=asked * pool + texts + frame * (prompts * pool),
                reply=sketch.reply(self.teacher.provider, Ask(_SAMPLE, sampling, purpose="overall")),
            )

    def rate(self, answered: Sequence[Answered], ask: AskAll, tally: Tally) -> list[list[Completion] | None]:
        """The completions of each prompt with their ratings; None where a call is not paid for."""
        wanted = [judgements(a.item, a.kept, self.settings) for a in answered]
        judged = iter(judge([one for group in wanted for one in group], self.teacher, self.settings, ask))
        made: list[list[Completion] | None] = []
        for one, group in zip(answered, wanted, strict=True):
            results = [next(judged) for _ in group]
            parsed = [r.parsed for r in results if r.parsed is not None]
            if len(parsed) < len(group):
                made.append(None)
                continue
            tally.judge_calls += sum(r.draws for r in results)
            tally.asked_again += sum(max(0, r.draws - 1) for r in results)
            made.append(rated(one.kept, group, parsed, tally))
        return made


def shown_order(ids: Sequence[str], seed: int, prompt_id: str, aspect: str) -> list[str]:
    """The order in which the judge sees completions for one aspect: by hash, so independent of the order of
    the pool."""
    return sorted(ids, key=lambda i: (row_seed(seed, prompt_id, aspect, i), i))


def judgements(item: Seed, completions: Sequence[Completion], settings: Judging) -> list[Judgement]:
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


def judge(wanted: Sequence[Judgement], teacher: Seat, settings: Judging, ask: AskAll) -> list[Judged]:
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


def _judge_ask(judgement: Judgement, teacher: Seat, settings: Judging, draw: int) -> Ask:
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
