"""How many calls gen-prefs makes, and how long they are, before any is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from zephyrctl.asking.estimate import Range, size, text_tokens
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.judges import ultrafeedback
from zephyrctl.providers.base import Ask
from zephyrctl.records import Message
from zephyrctl.stages.gen_prefs.rating import Settings

_SAMPLE = (Message(role="user", content="x"),)


def draw(
    sketch: Sketch, taken: Sequence[Seed], pool: Sequence[Seat], teacher: Seat, settings: Settings
) -> None:
    """The completions of the pool, then the judgements: one for each aspect over all completions of a prompt, one
    for each completion."""
    prompts = [
        text_tokens(sum(size(m.content) for m in seed.row.prompt), len(seed.row.prompt)) for seed in taken
    ]
    asked = sum(prompts, Range())
    texts = Range()
    members = Counter(seat.label for seat in pool)
    for seat in {seat.label: seat for seat in pool}.values():
        sampling = seat.sampling(
            temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens, seed=0
        )
        reply = sketch.reply(seat.provider, Ask(_SAMPLE, sampling, purpose="completion"))
        times = members[seat.label]
        calls = len(taken) * times
        sketch.add("pool", seat.provider, "completion", calls=calls, prompts=asked * times, reply=reply)
        texts = texts + reply * calls
    _judgements(sketch, len(taken), asked, texts, len(pool), teacher, settings)


def _judgements(
    sketch: Sketch, prompts: int, asked: Range, texts: Range, pool: int, teacher: Seat, settings: Settings
) -> None:
    """`asked` and `texts` are the tokens of all prompts and of all their completions."""
    sampling = teacher.sampling(
        temperature=settings.judge_temperature, max_tokens=settings.judge_max_tokens, seed=0
    )
    frames = [
        text_tokens(size(ultrafeedback.aspect_prompt(_SAMPLE, [""] * pool, aspect)))
        for aspect in settings.aspects
    ]
    calls = prompts * len(frames)
    sketch.add(
        "judge",
        teacher.provider,
        "aspect",
        calls=calls,
        most=calls * settings.judge_draws,
        prompts=(asked + texts) * len(frames) + sum(frames, Range()) * prompts,
        reply=sketch.reply(teacher.provider, Ask(_SAMPLE, sampling, purpose="aspect")),
    )
    if settings.overall:
        frame = text_tokens(size(ultrafeedback.overall_prompt(_SAMPLE, "")))
        sketch.add(
            "judge",
            teacher.provider,
            "overall",
            calls=prompts * pool,
            most=prompts * pool * settings.judge_draws,
            prompts=asked * pool + texts + frame * (prompts * pool),
            reply=sketch.reply(teacher.provider, Ask(_SAMPLE, sampling, purpose="overall")),
        )
