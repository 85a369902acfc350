"""How many calls gen-sft makes, and how long they are, before any is made."""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.asking.estimate import Range, size, text_tokens
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.providers.base import Ask, Sampling
from zephyrctl.records import Message
from zephyrctl.stages.gen_sft.chains import ANSWER, REFINEMENT, refine_request


def draw(sketch: Sketch, taken: Sequence[Seed], teacher: Seat, rounds: int, sampling: Sampling) -> None:
    """The answers to `taken` with their follow-up turns, and `rounds` refinements of each with its answer."""
    sample = (Message(role="user", content="x"),)
    answer = sketch.reply(teacher.provider, Ask(sample, sampling, purpose=ANSWER))
    refined = sketch.reply(teacher.provider, Ask(sample, sampling, purpose=REFINEMENT))
    answers = sum((_turns(seed, answer) for seed in taken), Range())
    turns = sum(1 + len(seed.row.follow_ups) for seed in taken)
    later = len(taken) * rounds
    sketch.add(
        "teacher",
        teacher.provider,
        ANSWER,
        calls=turns + later,
        prompts=answers + (refined + text_tokens(0)) * later,
        reply=answer,
    )
    sketch.add(
        "teacher",
        teacher.provider,
        REFINEMENT,
        calls=later,
        prompts=_refinements(taken, rounds, answer, refined),
        reply=refined,
    )


def _turns(seed: Seed, answer: Range) -> Range:
    """The input of a seed's turns: each sees the ones before it, with their answers."""
    before = text_tokens(sum(size(m.content) for m in seed.row.prompt), len(seed.row.prompt))
    total = before
    for turn in seed.row.follow_ups:
        before = before + answer + text_tokens(size(turn), 2)
        total = total + before
    return total


def _refinements(taken: Sequence[Seed], rounds: int, answer: Range, refined: Range) -> Range:
    """The input of all refinements: the request, the instruction (a seed's own at first) and its answer."""
    if rounds == 0:
        return Range()
    frame = text_tokens(size(refine_request("", ""))) + answer
    own = sum((text_tokens(size(seed.row.prompt[-1].content), 0) for seed in taken), Range())
    return own + refined * (len(taken) * (rounds - 1)) + frame * (len(taken) * rounds)
