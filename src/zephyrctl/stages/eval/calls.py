"""How many calls eval makes, and how long they are, before any is made."""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.asking.estimate import Range, size, text_tokens
from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.benchmarks.base import Item
from zephyrctl.judges import pairwise, single
from zephyrctl.providers.base import AnyProvider, Ask, Sampling
from zephyrctl.records import Message
from zephyrctl.stages.eval.config import EvalConfig

_DECODINGS = 2
_ORDERS = 2
_SAMPLE = (Message(role="user", content="x"),)


def draw(
    sketch: Sketch, items: Sequence[Item], models: Sequence[AnyProvider], judge: Seat, config: EvalConfig
) -> None:
    """Every model's answers, greedy and sampled; every answer graded; first answers compared in both orders where
    there are two models."""
    sampling = Sampling(temperature=config.temperature, max_tokens=config.max_tokens, seed=0)
    turns = sum(len(item.turns) for item in items)
    answer = Range()
    for model in models:
        answer = sketch.reply(model, Ask(_SAMPLE, sampling, purpose="answer"))
        prompts = sum((_turns(item, answer) for item in items), Range()) * _DECODINGS
        sketch.add("model", model, "answer", calls=turns * _DECODINGS, prompts=prompts, reply=answer)
    graded = turns * _DECODINGS * len(models)
    compared = len(items) * _DECODINGS * _ORDERS * (len(models) - 1)
    frame = text_tokens(size(single.prompt(_SAMPLE, ""))) + answer
    shown = sum((_turns(item, answer) for item in items), Range()) * (_DECODINGS * len(models))
    first = sum((text_tokens(size(item.turns[0])) for item in items), Range())
    pairs = (
        first * (compared / len(items))
        + (text_tokens(size(pairwise.prompt(_SAMPLE, "", ""))) + answer * 2) * compared
    )
    how = judge.sampling(temperature=0.0, max_tokens=config.judge_max_tokens, seed=config.seed)
    sketch.add(
        "judge",
        judge.provider,
        "judge",
        calls=graded + compared,
        prompts=shown + frame * graded + pairs,
        reply=sketch.reply(judge.provider, Ask(_SAMPLE, how, purpose="judge")),
    )


def _turns(item: Item, answer: Range) -> Range:
    """The input of a prompt's turns: each sees the ones before it, with their answers."""
    before = total = text_tokens(size(item.turns[0]))
    for turn in item.turns[1:]:
        before = before + answer + text_tokens(size(turn), 2)
        total = total + before
    return total
