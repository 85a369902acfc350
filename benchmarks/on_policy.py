"""Measures in the sandbox what a second, on-policy round of preferences brings: `python benchmarks/on_policy.py`.

Round 1 is the recipe: imitation, then preferences over what the sandbox's pool of four wrote. Round 2 goes on from that
model with prompts that were not used before, three ways that differ only in who wrote the completions:

on-policy    four draws of the round-1 checkpoint itself
mixed        two draws of it beside the two better members of the sandbox's pool
off-policy   the pool of four again, the control

All three take the same number of optimiser steps on batches of one size, so they see the same number of pairs, each
once. Training is repeated with several seeds, from the base model on; every seed's own checkpoint writes its own
completions. Differences are paired by prompt and seed; the intervals speak of new prompts and new training runs, each
95 % by itself. What comes out is written as it is to benchmarks/on_policy.json, with the settings that it holds for.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.store import Store
from zephyrctl.benchmarks.sandbox import LABEL
from zephyrctl.benchmarks.statistics import mean_interval, paired_difference
from zephyrctl.events import Event, Note, Warning_
from zephyrctl.recipes import table3
from zephyrctl.recipes.chain import Chain
from zephyrctl.records import PreferenceRow, Verdict
from zephyrctl.sandbox import world

HERE = Path(__file__).parent
FIRST_SEED = 42
PROMPTS_SEED = 7
BATCH = 16
ROUND_1, ON, MIXED, OFF = "round 1", "on-policy", "mixed", "off-policy"
ARMS = (ON, MIXED, OFF)
COMPARISONS = ((ON, OFF), (MIXED, OFF), (ON, ROUND_1), (MIXED, ROUND_1), (OFF, ROUND_1))
MEASURES = table3.COLUMNS[:3]


@dataclass(frozen=True)
class Sizes:
    """How much of everything: training seeds, dialogues, prompts of each round, prompts of the evaluation."""

    seeds: int
    dialogues: int
    prompts: int
    questions: int


@dataclass
class Round:
    """What the arms of round 2 come from for one training seed: the model, and the pairs by arm."""

    seed: int
    init: str
    pairs: dict[str, str] = field(default_factory=dict)


def prompts_files(folder: Path, count: int) -> tuple[str, str]:
    """Two files of `count` single-turn prompts each that have no prompt in common; every kind of task in both."""
    asked = list(
        dict.fromkeys(t.turns[0] for t in world.train_tasks(3 * count, PROMPTS_SEED) if not t.turns[1:])
    )
    if len(asked) < 2 * count:
        raise SystemExit(f"the sandbox gave {len(asked)} prompts of the {2 * count} needed")
    paths = []
    for number, part in ((1, asked[:count]), (2, asked[count : 2 * count])):
        path = folder / f"prompts-{number}.jsonl"
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in part), encoding="utf-8")
        paths.append(str(path))
    return paths[0], paths[1]


def pool_of(arm: str, model: str) -> dict[str, Any]:
    """Who answers in one arm, as settings of `gen-prefs`: always four completions for each prompt."""
    if arm == ON:
        return {"pool": [model], "n": 4}
    if arm == MIXED:
        return {"pool": [model, model, "sandbox:pool-a", "sandbox:pool-b"]}
    return {}


def pairs_from(chain: Chain, name: str, prompts: str, **pool: Any) -> str:
    """Completions, ratings, pairs: the ref of the pairs."""
    feedback = chain.step(
        "gen-prefs", name, teacher="sandbox", prompts=prompts, out=f"feedback-{name}", **pool
    )
    return str(chain.step("binarize", name, feedback=str(feedback.ref), out=f"prefs-{name}").ref)


def first_round(chain: Chain, dialogues: str, pairs: str, seed: int, steps: int) -> str:
    """dSFT and one round of dDPO from the base model with one training seed."""
    sft = chain.step("sft", f"seed {seed}", init="sandbox", data=[dialogues], seed=seed, out=f"sft-{seed}")
    return str(preferences(chain, str(sft.ref), pairs, seed, steps, f"dpo-1-{seed}").ref)


def preferences(chain: Chain, init: str, pairs: str, seed: int, steps: int, name: str) -> Artifact:
    """One round of dDPO over `steps` batches of pairs."""
    return chain.step(
        "dpo", name, init=init, data=[pairs], seed=seed, max_steps=steps, batch_size=BATCH, out=name
    )


def batches_in(chain: Chain, refs: Sequence[str]) -> int:
    """How many whole batches of training pairs the smallest of some artifacts holds."""
    held = []
    for ref in refs:
        splits = Counter(split for _, split, _ in chain.store.resolve(ref).rows())
        held.append(splits["train"] // BATCH)
    return min(held)


def pairs_told(chain: Chain, ref: str) -> dict[str, Any]:
    """What pairs are like: how many, their scores, and how often the truth agrees (where one side alone is right)."""
    artifact = chain.store.resolve(ref)
    gaps, right, told = [], 0, 0
    for _, _, row in artifact.rows():
        assert isinstance(row, PreferenceRow)
        turns = tuple(m.content for m in row.prompt)
        chosen, rejected = (world.grade(turns, side[-1].content) for side in (row.chosen, row.rejected))
        gaps.append((row.score_chosen or 0) - (row.score_rejected or 0))
        told += chosen != rejected
        right += chosen and not rejected
    return {
        "pairs": len(gaps),
        "dropped": artifact.manifest.counts["dropped"],
        "mean_score_gap": round(math.fsum(gaps) / len(gaps), 3),
        "one_side_right": told,
        "of_these_chosen_right": right,
    }


def run(folder: Path, sizes: Sizes, emit: Any) -> dict[str, Any]:
    """Everything, in a store in `folder`; what came out as a JSON-ready document."""
    steps = 4 + 2 + sizes.seeds * (2 + 4 + 3 + 4)
    more = {"gen-sft": {"rows": sizes.dialogues}, "eval": {"rows": sizes.questions}}
    chain = Chain(Store.open(folder / "artifacts"), emit, overrides=more, steps=steps)
    first, fresh = prompts_files(folder, sizes.prompts)
    dialogues = str(chain.step("gen-sft", "dialogues", teacher="sandbox").ref)
    pairs = pairs_from(chain, "1", first)
    off = pairs_from(chain, "off", fresh)
    first_steps = batches_in(chain, [pairs])
    seeds = range(FIRST_SEED, FIRST_SEED + sizes.seeds)
    rounds = [Round(s, first_round(chain, dialogues, pairs, s, first_steps)) for s in seeds]
    for one in rounds:
        for arm in (ON, MIXED):
            one.pairs[arm] = pairs_from(chain, f"{arm}-{one.seed}", fresh, **pool_of(arm, one.init))
        one.pairs[OFF] = off
    second_steps = batches_in(chain, [ref for one in rounds for ref in one.pairs.values()])
    systems: dict[str, list[list[Verdict]]] = {name: [] for name in (ROUND_1, *ARMS)}
    for one in rounds:
        models = {ROUND_1: one.init}
        for arm in ARMS:
            name = f"dpo-2-{arm}-{one.seed}"
            models[arm] = str(preferences(chain, one.init, one.pairs[arm], one.seed, second_steps, name).ref)
        for name, ref in models.items():
            measured = chain.step("eval", f"{name}, seed {one.seed}", model=ref)
            systems[name].append([row for _, _, row in measured.rows() if isinstance(row, Verdict)])
    return {
        "optimiser_steps": {"round 1": first_steps, "round 2": second_steps},
        "pairs_seen": {"round 1": BATCH * first_steps, "round 2": BATCH * second_steps},
        "pairs": {
            "round 1": pairs_told(chain, pairs),
            OFF: pairs_told(chain, off),
            **{
                f"{arm}, seed {o.seed}": pairs_told(chain, o.pairs[arm])
                for o in rounds
                for arm in (ON, MIXED)
            },
        },
        "scores": scores(systems),
        "differences": differences(systems),
    }


def scores(systems: dict[str, list[list[Verdict]]]) -> dict[str, Any]:
    """Every system's mean with its interval on every measure."""
    return {
        name: {
            c.title: _rounded(mean_interval(table3.system_units(runs, c), scale=c.scale)) for c in MEASURES
        }
        for name, runs in systems.items()
    }


def differences(systems: dict[str, list[list[Verdict]]]) -> list[dict[str, Any]]:
    """The comparisons, paired by prompt and training seed, each with a sentence."""
    found = []
    for one, other in COMPARISONS:
        for column in MEASURES:
            units = (table3.system_units(systems[name], column) for name in (one, other))
            estimate = paired_difference(*units)
            said = table3.sentence(table3.Comparison(one, other, column, estimate))
            found.append(
                {"one": one, "other": other, "measure": column.title, "difference": _rounded(estimate),
                 "resolved": bool(estimate and estimate.resolved), "sentence": said}
            )  # fmt: skip
    return found


def _rounded(estimate: Any) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(estimate).items()}


def tell(event: Event) -> None:
    """Shows where the run is, and what is wrong."""
    if isinstance(event, Note | Warning_):
        print(event.text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dialogues", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=1200)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--to", type=Path, default=HERE / "on_policy.json")
    typed = parser.parse_args()
    sizes = Sizes(typed.seeds, typed.dialogues, typed.prompts, typed.questions)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), sizes, tell)
    asked = " ".join(f"--{name} {value}" for name, value in asdict(sizes).items())
    report = {
        "about": LABEL,
        "machine": {
            "command": f"python benchmarks/on_policy.py {asked}",
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "packages": {name: version(name) for name in ("torch", "transformers", "trl")},
            "minutes": round((time.monotonic() - started) / 60, 1),
        },
        "sizes": asdict(sizes),
        **found,
    }
    typed.to.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for one in found["differences"]:
        print(one["sentence"])


if __name__ == "__main__":
    main()
