"""How many calls gen-prefs makes, and how long they are, before any is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from zephyrctl.asking.estimate import Range, size, text_tokens
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.providers.base import Ask
from zephyrctl.records import Message
from zephyrctl.stages.gen_prefs.completing import Answering
from zephyrctl.stages.gen_prefs.rating import Rater

_SAMPLE = (Message(role="user", content="x"),)


def draw(
    sketch: Sketch, taken: Sequence[Seed], pool: Sequence[Seat], rater: Rater, settings: Answering
) -> None:
    """The completions of the pool, then what the rater asks."""
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
    rater.draw(sketch, len(taken), asked, texts, len(pool))
