"""`zephyrctl demo`: the whole recipe in the sandbox, one prompt answered side by side, then the paper's
Table 3.

Everything goes through the stages' own `run`, so the demo resumes where it was stopped, and a second demo
finds all done.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zephyrctl.artifacts.store import Store
from zephyrctl.benchmarks.sandbox import LABEL
from zephyrctl.events import Emit, Note, Table, silent
from zephyrctl.recipes import table3
from zephyrctl.recipes.chain import Chain
from zephyrctl.recipes.preview import side_by_side
from zephyrctl.records import Verdict

FIRST_SEED = 42

FAST: Mapping[str, Mapping[str, Any]] = {
    "gen-sft": {"rows": 60},
    "sft": {"max_steps": 4},
    "gen-prefs": {"rows": 60},
    "dpo": {"max_steps": 4},
    "eval": {"rows": 24},
}
"""What `--fast` asks of each stage: enough to pass through every part, too little to learn anything."""


@dataclass
class DemoResult:
    """What the demo made. `ref` is the dDPO + dSFT model; `document` is what `--json` prints."""

    ref: str
    refs: dict[str, str]
    document: dict[str, Any]
    fresh: int
    """Steps that had to work; 0 = all was there already."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each step by the name of what it made; for people, never stored."""


def run_demo(store_root: Path, *, seeds: int = 1, fast: bool = False, emit: Emit = silent) -> DemoResult:
    """The recipe from teacher to Table 3 in a store of its own at `store_root`, links in `ckpt` beside it.

    `seeds`: how many times the models are trained; the first keeps its plain names, the others end in `.s2`,
    `.s3` ... so that a later demo with more seeds only adds to what is there. Raises what the stages raise.
    """
    started = time.monotonic()
    chain = Chain(Store.open(store_root), emit, overrides=FAST if fast else {}, steps=4 + 8 * seeds)
    emit(Note(f"the ZEPHYR recipe with a tiny model and a toy teacher, offline, in {store_root}; {LABEL}"))
    if fast:
        emit(Note("--fast: a small run that shows that everything works; too little training to score"))
    data = _make_data(chain)
    systems: dict[str, list[str]] = {table3.BASE: ["sandbox"]}
    for number in range(1, seeds + 1):
        models = _train_pair(chain, data, number)
        if number == 1:
            side_by_side(chain, {table3.BASE: "sandbox", **models})
        models |= _train_others(chain, data, models[table3.DSFT_1], number)
        for name, ref in models.items():
            systems.setdefault(name, []).append(ref)
    verdicts = {name: [_measure(chain, name, ref) for ref in refs] for name, refs in systems.items()}
    document = _report(chain, verdicts)
    ref = systems[table3.DPO_ON_SFT][0]
    _what_next(chain, store_root, seeds, time.monotonic() - started)
    return DemoResult(ref, dict(chain.made), {"ref": ref, **document}, chain.fresh, dict(chain.seconds))


@dataclass(frozen=True)
class Data:
    """The refs of the training data: dialogues to imitate, preference pairs, best-ranked answers as
    dialogues."""

    dialogues: str
    pairs: str
    best: str


def _make_data(chain: Chain) -> Data:
    dialogues = chain.step("gen-sft", "a teacher answers seed prompts and refines them", teacher="sandbox")
    feedback = chain.step(
        "gen-prefs",
        "four models answer each prompt, the teacher rates the answers (AI feedback)",
        teacher="sandbox",
        prompts=str(dialogues.ref),
    )
    pairs = chain.step(
        "binarize", "the best answer of each prompt against a random lower one", feedback=str(feedback.ref)
    )
    return Data(str(dialogues.ref), str(pairs.ref), chain.made["prefs-best"])


def _train_pair(chain: Chain, data: Data, number: int) -> dict[str, str]:
    """The two models of the recipe: imitation alone (dSFT-1), and preferences on top of it (dDPO + dSFT)."""
    seed = FIRST_SEED + number - 1
    first = chain.step(
        "sft",
        f"the base model imitates the teacher -> dSFT-1{_of(number)}",
        init="sandbox",
        data=[data.dialogues],
        seed=seed,
        out=_name("dsft-1", number),
    )
    last = chain.step(
        "dpo",
        f"dSFT-1 learns which answers are preferred -> dDPO + dSFT{_of(number)}",
        init=str(first.ref),
        data=[data.pairs],
        seed=seed,
        out=_name("ddpo-dsft", number),
    )
    return {table3.DSFT_1: str(first.ref), table3.DPO_ON_SFT: str(last.ref)}


def _train_others(chain: Chain, data: Data, dsft_1: str, number: int) -> dict[str, str]:
    """The paper's two controls: more imitation instead of preferences (dSFT-2), preferences without
    imitation."""
    seed = FIRST_SEED + number - 1
    second = chain.step(
        "sft",
        f"a control: dSFT-1 imitates the best-ranked answers instead -> dSFT-2{_of(number)}",
        init=dsft_1,
        data=[data.best],
        epochs=1,
        seed=seed,
        out=_name("dsft-2", number),
    )
    alone = chain.step(
        "dpo",
        f"a control: preferences without imitation first -> dDPO - dSFT{_of(number)}",
        init="sandbox",
        data=[data.pairs],
        seed=seed,
        out=_name("ddpo-only", number),
    )
    return {table3.DSFT_2: str(second.ref), table3.DPO_ONLY: str(alone.ref)}


def _name(name: str, number: int) -> str:
    return name if number == 1 else f"{name}.s{number}"


def _of(number: int) -> str:
    return "" if number == 1 else f" (training seed {number})"


def _measure(chain: Chain, system: str, model: str) -> list[Verdict]:
    """The stored verdicts of one model's evaluation."""
    hint = f"{system} answers prompts it never saw; a judge and an exact check grade them"
    artifact = chain.step("eval", hint, model=model)
    return [row for _, _, row in artifact.rows() if isinstance(row, Verdict)]


def _report(chain: Chain, verdicts: dict[str, list[list[Verdict]]]) -> dict[str, Any]:
    """Shows the table and what it says; the same as a JSON-ready document."""
    judge = next(row.judge for row in verdicts[table3.BASE][0] if row.suite == table3.JUDGED.suite)
    cells = table3.cells(verdicts)
    compared = table3.compare(verdicts)
    chain.emit(table3.table(cells, judge))
    for one in compared:
        if one.column == table3.JUDGED or (one.one, one.other) in table3.COMPARISONS[:2]:
            chain.emit(Note(table3.sentence(one)))
    chain.emit(
        Note(
            "every interval is 95 % by itself, not corrected for looking at several; sampled = temperature"
            " 0.7"
        )
    )
    return {
        "about": LABEL,
        "judge": judge,
        "table3": {name: {k: e and asdict(e) for k, e in row.items()} for name, row in cells.items()},
        "comparisons": [
            {
                "one": c.one,
                "other": c.other,
                "measure": f"{c.column.suite} {c.column.decoding}",
                "difference": c.estimate and asdict(c.estimate),
                "resolved": bool(c.estimate and c.estimate.resolved),
                "sentence": table3.sentence(c),
            }
            for c in compared
        ],
        "refs": dict(chain.made),
    }


def _what_next(chain: Chain, store_root: Path, seeds: int, seconds: float) -> None:
    chain.emit(Table("made", ("name", "ref"), tuple(chain.made.items())))
    state = f"{chain.fresh} steps worked" if chain.fresh else "everything was there already"
    chain.emit(Note(f"{state}; {seconds:.0f} s in all. What to type next:"))
    store = f"--store {store_root}"
    chain.emit(Note(f"  zephyrctl artifacts ls {store}"))
    chain.emit(Note(f"  zephyrctl artifacts lineage ddpo-dsft {store}"))
    if seeds == 1:
        chain.emit(Note("  zephyrctl demo --seeds 3          (intervals over training runs too)"))
    chain.emit(
        Note("  zephyrctl gen-sft --teacher MODEL --prompts FILE          (the same with a real teacher)")
    )
