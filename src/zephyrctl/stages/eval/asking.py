"""Turn by turn: the model answers, and the judge is asked what the suites want to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zephyrctl.asking.seats import Seat, trouble
from zephyrctl.benchmarks.base import Benchmark, Decoding, Grading, Item, Reply, Transcript
from zephyrctl.providers.base import Answer, Ask, Failure, Sampling
from zephyrctl.records import Message, Verdict, row_seed

if TYPE_CHECKING:
    from zephyrctl.asking.calling import Asker
    from zephyrctl.stages.eval.config import EvalConfig

Transcripts = dict[str, Transcript]


def transcripts(
    asker: Asker, provider: Any, items: Sequence[Item], decoding: Decoding, config: EvalConfig, label: str
) -> tuple[Transcripts, int]:
    """The model's answers to every turn of `items` by prompt_id, and how many were cut at `max_tokens`.

    Turns go in waves: a later turn is asked after the model's own earlier answers. A sampled answer's seed
    comes from the run's seed and the prompt, so that answers do not depend on their neighbours.
    """
    answers: dict[str, list[Reply]] = {item.prompt_id: [] for item in items}
    cut = 0
    for turn in range(1, max(len(item.turns) for item in items) + 1):
        due = [item for item in items if len(item.turns) >= turn]
        going = [item for item in due if all(r.text is not None for r in answers[item.prompt_id])]
        asks = [_ask(item, answers[item.prompt_id], turn, decoding, config) for item in going]
        task = f"{label}: {decoding.name} answers, turn {turn}"
        for item, answer in zip(going, asker.ask(provider, asks, task=task), strict=True):
            answers[item.prompt_id].append(_reply(answer))
            cut += isinstance(answer, Answer) and answer.outcome == "length"
        for item in due:
            if len(answers[item.prompt_id]) < turn:
                answers[item.prompt_id].append(Reply(None, "no answer to an earlier turn"))
    return {i.prompt_id: Transcript(i, decoding.name, tuple(answers[i.prompt_id])) for i in items}, cut


def _ask(item: Item, earlier: Sequence[Reply], turn: int, decoding: Decoding, config: EvalConfig) -> Ask:
    before = Transcript(item, decoding.name, tuple(earlier)).before(turn)
    seed = row_seed(config.seed, item.prompt_id, turn) if decoding.temperature > 0 else None
    sampling = Sampling(temperature=decoding.temperature, max_tokens=config.max_tokens, seed=seed)
    return Ask(tuple(before), sampling, purpose="answer")


def _reply(answer: Answer | Failure) -> Reply:
    """The text as it stands, also when cut; a refusal, a failed call, or reasoning alone is no answer."""
    if isinstance(answer, Failure):
        return Reply(None, f"{answer.reason}: {answer.detail}")
    if answer.outcome in ("refusal", "filtered", "reasoning_cut"):
        return Reply(None, answer.outcome)
    return Reply(answer.text.strip())


def verdicts(
    asker: Asker,
    judge: Seat,
    suites: Sequence[Benchmark],
    answers: Mapping[str, Transcripts],
    baseline: Mapping[str, Transcripts],
    config: EvalConfig,
    label: str,
) -> list[Verdict]:
    """The verdicts on `answers` (transcripts by decoding) in the order of suites, decodings, prompts,
    turns, orders.

    `baseline` holds the answers to compare with; empty = the suites that compare are left out.
    """
    gradings: list[tuple[Benchmark, Grading]] = []
    for suite in suites:
        if suite.compares and not baseline:
            continue
        for decoding, by_prompt in answers.items():
            for prompt, transcript in by_prompt.items():
                theirs = baseline[decoding][prompt] if suite.compares else None
                gradings += [(suite, g) for g in suite.gradings(transcript, theirs, judge.label)]
    requests = [g.request for _, g in gradings if g.request is not None]
    sampling = judge.sampling(temperature=0.0, max_tokens=config.judge_max_tokens, seed=config.seed)
    asks = [Ask((Message(role="user", content=r),), sampling, purpose="judge") for r in requests]
    replies = iter(asker.ask(judge.provider, asks, task=f"{label}: judging"))
    return [g.verdict if g.request is None else _read(s, g, next(replies)) for s, g in gradings]


def _read(suite: Benchmark, grading: Grading, reply: Answer | Failure) -> Verdict:
    problem = trouble(reply)
    if problem is not None or isinstance(reply, Failure):
        return grading.failed("judge: " + ": ".join(problem or ("failed",)))
    return suite.read(grading, reply.text)
