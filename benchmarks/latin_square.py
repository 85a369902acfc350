"""Measures what the order shown does to each author's mean rating, in the sandbox: `python benchmarks/latin_square.py`.

The same completions are rated by a judge that favours what stands first and has no other habit, under three orders: a
Latin square over the aspects, an order shuffled anew for each aspect, and a fixed one, in which every author always has
the same place. The truth is what a judge without habits gives the same texts. Three errors:

authors           mean over the authors of the distance of their mean rating from the truth
between authors   the same less what all authors have in common: all that a comparison of authors sees
between texts     the same for the texts of a prompt: mean over texts of the distance of their mean over the aspects
                  from the truth, both less the prompt's mean; it holds the noise of both judges too

Writes benchmarks/latin_square.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zephyrctl.asking.prompts import from_sandbox
from zephyrctl.asking.seats import Seat
from zephyrctl.judges.sample import mean_of_aspects
from zephyrctl.judges.ultrafeedback import ASPECTS
from zephyrctl.modelspec import parse_model
from zephyrctl.project import Project
from zephyrctl.providers.base import Answer, Ask, Failure
from zephyrctl.providers.registry import make_provider
from zephyrctl.providers.site import Site
from zephyrctl.records import Completion, row_seed
from zephyrctl.sandbox import teacher
from zephyrctl.stages.gen_prefs.answered import Answered
from zephyrctl.stages.gen_prefs.completing import Answering, Pool
from zephyrctl.stages.gen_prefs.judgements import Judging
from zephyrctl.stages.gen_prefs.judging import JudgeRater
from zephyrctl.stages.gen_prefs.orders import Order, latin_order
from zephyrctl.stages.gen_prefs.tally import Tally

OUT = Path(__file__).with_suffix(".json")
POOL = ("pool-a", "pool-b", "pool-c", "pool-d")
JUDGE, FAIR = "early-judge", "fair-judge"
POSITION_EFFECT = 0.3
ERRORS = ("authors", "between_authors", "between_texts")
Means = dict[str, float]


def fixed(ids: Sequence[str], aspects: Sequence[str], seed: int, prompt_id: str) -> dict[str, list[str]]:
    """Every author in the place that it has in the pool."""
    return {aspect: list(ids) for aspect in aspects}


def shuffled(ids: Sequence[str], aspects: Sequence[str], seed: int, prompt_id: str) -> dict[str, list[str]]:
    """An order of its own for each aspect, as UltraFeedback has it."""
    return {a: random.Random(row_seed(seed, prompt_id, a)).sample(list(ids), len(ids)) for a in aspects}


ORDERS: dict[str, Order] = {"latin square": latin_order, "shuffled": shuffled, "fixed": fixed}


def seat(role: str) -> Seat:
    """A role of the sandbox."""
    spec = parse_model(f"sandbox:{role}")
    return Seat(spec, make_provider(spec, site=Site(Project())))


def answers(asks: Sequence[tuple[Seat, Ask]], task: str) -> list[Answer | Failure]:
    """The sandbox's replies, without ledger and caller."""
    made: list[Answer | Failure] = []
    for who, ask in asks:
        messages = [{"role": m.role, "content": m.content} for m in ask.messages]
        text = teacher.reply(
            who.spec.name,
            messages,
            draw=ask.draw,
            seed=ask.sampling.seed or 0,
            temperature=ask.sampling.temperature,
        )
        made.append(Answer(text, "text", "stop", who.label, None, "", False))
    return made


def rated(answered: Sequence[Answered], judge: str, order: Order, seed: int) -> list[list[Completion]]:
    """The completions with their ratings on all aspects."""
    rater = JudgeRater(seat(judge), Judging(seed, ASPECTS, False, 0.0, 512), order=order)
    return [row for row in rater.rate(answered, answers, Tally()) if row is not None]


def by_author(rows: Sequence[Sequence[Completion]]) -> Means:
    """The mean rating of each author."""
    ratings: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for completion in row:
            ratings[completion.model] += [r.value for r in completion.ratings if r.value is not None]
    return {author: statistics.fmean(values) for author, values in sorted(ratings.items())}


def distance(one: Means, truth: Means, *, centred: bool) -> float:
    """The mean over the authors of the distance from the truth."""
    off = {author: one[author] - truth[author] for author in truth}
    middle = statistics.fmean(off.values()) if centred else 0.0
    return statistics.fmean(abs(value - middle) for value in off.values())


def between_texts(rows: Sequence[Sequence[Completion]], truth: Sequence[Sequence[Completion]]) -> float:
    """The mean distance of texts from the truth, less what a prompt's texts have in common."""
    apart = []
    for row, real in zip(rows, truth, strict=True):
        off = [
            a - b
            for one, other in zip(row, real, strict=True)
            if (a := mean_of_aspects(one)) is not None and (b := mean_of_aspects(other)) is not None
        ]
        apart += [abs(value - statistics.fmean(off)) for value in off]
    return statistics.fmean(apart)


def measured(seed: int, prompts: int) -> dict[str, Any]:
    """One seed: completions, truth, and what each order makes of them."""
    seeds = from_sandbox(prompts, seed).load(seed=seed, test_fraction=0.1)
    pool = Pool([seat(name) for name in POOL], Answering(seed, 1.0, 1.0, 64))
    answered = [one for one in pool.answer(seeds, answers) if len(one.kept) == len(POOL)]
    fair = rated(answered, FAIR, latin_order, seed)
    truth = by_author(fair)
    found: dict[str, Any] = {"seed": seed, "prompts": len(answered), "truth": truth, "orders": {}}
    for name, order in ORDERS.items():
        rows = rated(answered, JUDGE, order, seed)
        means = by_author(rows)
        found["orders"][name] = {
            "means": means,
            "authors": distance(means, truth, centred=False),
            "between_authors": distance(means, truth, centred=True),
            "between_texts": between_texts(rows, fair),
        }
    return found


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    early = replace(teacher.ROLES[FAIR], position_effect=POSITION_EFFECT)
    teacher.ROLES = {**teacher.ROLES, JUDGE: early}  # a judge of this script's own
    runs = [measured(seed, args.prompts) for seed in range(1, args.seeds + 1)]
    summary = {
        name: {
            key: {
                "mean": round(statistics.fmean(run["orders"][name][key] for run in runs), 4),
                "worst": round(max(run["orders"][name][key] for run in runs), 4),
            }
            for key in ERRORS
        }
        for name in ORDERS
    }
    document = {
        "judge": "the sandbox's fair judge, with a position effect",
        "position_effect": POSITION_EFFECT,
        "prompts": args.prompts,
        "summary": summary,
        "runs": runs,
    }
    OUT.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{args.prompts} prompts, {args.seeds} seeds, position effect {POSITION_EFFECT} points")
    print(f"{'order':<14}" + "".join(f"{key.replace('_', ' '):>18}" for key in ERRORS))
    for name, one in summary.items():
        print(f"{name:<14}" + "".join(f"{one[key]['mean']:>18.3f}" for key in ERRORS))


if __name__ == "__main__":
    main()
