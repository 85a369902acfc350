"""How many calls gen-prefs makes, and how long they are, before any is made."""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.asking.estimate import Range, size, text_tokens
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.sketch import Sketch
from zephyrctl.stages.gen_prefs.rating import Answerer, Rater


def draw(sketch: Sketch, taken: Sequence[Seed], answerer: Answerer, rater: Rater) -> None:
    """The completions, then what the rater asks."""
    texts = answerer.draw(sketch, taken)
    rater.draw(sketch, len(taken), prompt_tokens(taken), texts, answerer.most)


def prompt_tokens(taken: Sequence[Seed]) -> Range:
    """The tokens of all prompts."""
    asked = Range()
    for seed in taken:
        asked += text_tokens(sum(size(m.content) for m in seed.row.prompt), len(seed.row.prompt))
    return asked
