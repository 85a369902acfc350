"""A language model as the rater: one request for each aspect over all completions of a prompt, one for the
overall score of each.

A rating is bound to its completion by completion_id: the order shown is drawn for each aspect (see `orders`), noted
as `position`, and undone by label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.asking.estimate import Range, size, text_tokens
from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.judges.base import Parsed, rubric_digests
from zephyrctl.providers.base import AnyProvider
from zephyrctl.records import Completion, Message, Rating
from zephyrctl.stages.gen_prefs.answered import Answered, AskAll
from zephyrctl.stages.gen_prefs.judgements import REPAIR, Judge, Judgement, Judging
from zephyrctl.stages.gen_prefs.orders import Order, latin_order
from zephyrctl.stages.gen_prefs.tally import Tally

__all__ = ["JudgeRater", "Judging", "rated"]

_SAMPLE = (Message(role="user", content="x"),)
_UNREADABLE = 0.02
"""The share of judgements that an estimate expects to need a repair turn."""


class JudgeRater:
    """A teacher that reads the completions and rates them.

    `draw` numbers judgements of the same completions by the same teacher: another number is another sample of the
    same requests, in the same order shown. `order` decides what stands where.
    """

    def __init__(self, teacher: Seat, settings: Judging, draw: int = 0, order: Order = latin_order) -> None:
        self.teacher = teacher
        self.settings = settings
        self.label = teacher.label
        self.world = teacher.world
        self._judge = Judge(teacher, settings, draw)
        self._order = order

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
        sample = self._wanted("", _SAMPLE, {str(place): "" for place in range(pool)})
        aspects = [one for one in sample if one.kind == "aspect"]
        critiques = [one for one in sample if one.kind == "overall"]
        self._sketch(sketch, prompts, aspects, (asked + texts) * len(aspects))
        self._sketch(sketch, prompts, critiques, asked * len(critiques) + texts)

    def _sketch(self, sketch: Sketch, prompts: int, sample: Sequence[Judgement], material: Range) -> None:
        """One part for a prompt's judgements of a kind, one for what of them must be repaired; `material` is what is
        judged, in tokens, over all prompts."""
        calls = prompts * len(sample)
        if not calls:
            return
        provider, one = self.teacher.provider, sample[0]
        frames = sum((text_tokens(size(judgement.request)) for judgement in sample), Range())
        sent = material + frames * prompts
        reply = sketch.reply(provider, self._judge.ask(one))
        sketch.add("judge", provider, one.kind, calls=calls, prompts=sent, reply=reply)
        if self.settings.repair:
            expected = math.ceil(calls * _UNREADABLE)
            again = text_tokens(size(one.repair()), messages=2) * calls
            sketch.add(
                "judge",
                provider,
                f"{one.kind} {REPAIR}",
                calls=expected,
                most=calls,
                prompts=(sent + reply * calls + again) * (expected / calls),
                reply=sketch.reply(provider, self._judge.repair(one, "")),
            )

    def rate(self, answered: Sequence[Answered], ask: AskAll, tally: Tally) -> list[list[Completion] | None]:
        """The completions of each prompt with their ratings; None where a call is not paid for."""
        wanted = [self._wanted(a.item.row.prompt_id, a.item.row.prompt, _texts(a.kept)) for a in answered]
        judged = iter(self._judge.rate([one for group in wanted for one in group], ask))
        made: list[list[Completion] | None] = []
        for one, group in zip(answered, wanted, strict=True):
            results = [next(judged) for _ in group]
            parsed = [r.parsed for r in results if r.parsed is not None]
            if len(parsed) < len(group):
                made.append(None)
                continue
            repaired = [p for r, p in zip(results, parsed, strict=True) if r.repaired]
            tally.judge_calls += len(group) + len(repaired)
            tally.cut_judgements += sum(r.cut for r in results)
            tally.repaired += len(repaired)
            tally.repaired_ok += sum(not any(one.failed for one in p) for p in repaired)
            made.append(rated(one.kept, group, parsed, tally))
        return made

    def _wanted(self, prompt_id: str, prompt: Sequence[Message], texts: Mapping[str, str]) -> list[Judgement]:
        orders = self._order(list(texts), self.settings.aspects, self.settings.seed, prompt_id)
        return self._judge.judgements(prompt, texts, orders)


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


def _texts(completions: Sequence[Completion]) -> dict[str, str]:
    return {c.completion_id: c.text for c in completions}


def _rating(aspect: str, result: Parsed, position: int) -> Rating:
    return Rating(
        aspect=aspect,
        value=result.value,
        rationale=result.rationale,
        reason=result.reason,
        position=position,
        types=list(result.types),
    )


def _scores(ratings: list[Rating], overall: Parsed | None) -> Mapping[str, object]:
    if overall is None:
        return {"ratings": ratings}
    return {"ratings": ratings, "overall": overall.value, "critique": overall.rationale}
