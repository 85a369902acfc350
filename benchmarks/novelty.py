"""Measures the novelty filter against `rouge_score` in one run: `python benchmarks/novelty.py`.

A pool of 20,000 made-up instructions: 5 to 40 words each, words drawn with frequencies that fall with their rank as
those of English do (Zipf), one in ten a near duplicate of an earlier one. 1,000 candidates of the same make. Both sides
decide whether the highest ROUGE-L F with the pool is above 0.7. rouge_score is too slow for all of them, so it does a
few, near duplicates among them, whose decisions are compared; the ratio is that of the processor time of both sides for
the same few. The pool is tokenised for rouge_score once, beforehand, which `RougeScorer.score` would do anew for each
pair. Writes benchmarks/novelty.json and prints a table.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import random
import string
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from rouge_score import rouge_scorer, tokenizers  # type: ignore[import-untyped]

from zephyrctl.curation.novelty import Pool

R = TypeVar("R")
HERE = Path(__file__).parent
POOL, CANDIDATES = 20_000, 1_000
NEAR, NEW, REPEAT = 3, 5, 25
"""Candidates that rouge_score decides too, of each kind; and how often zephyrctl does them, to be measurable."""
THRESHOLD = 0.7
SEED = 20_240_501


def instructions(count: int, rng: random.Random, words: list[str], weights: list[float]) -> list[str]:
    """So many instructions; one in ten is an earlier one with a few words changed."""
    made: list[str] = []
    for _ in range(count):
        if made and rng.random() < 0.1:
            text = rng.choice(made).split()
            for _ in range(rng.randint(1, 4)):
                text[rng.randrange(len(text))] = rng.choices(words, cum_weights=weights)[0]
        else:
            text = rng.choices(words, cum_weights=weights, k=rng.randint(5, 40))
        made.append(" ".join(text).capitalize() + ".")
    return made


def texts() -> tuple[list[str], list[str]]:
    """The pool and the candidates; some candidates are near duplicates of texts in the pool."""
    rng = random.Random(SEED)
    letters = string.ascii_lowercase
    words = sorted({"".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(30_000)})
    rng.shuffle(words)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    made = instructions(POOL + CANDIDATES, rng, words, weights)
    return made[:POOL], made[POOL:]


def filled(pool: list[str]) -> Pool:
    """The pool of zephyrctl."""
    made = Pool()
    for text in pool:
        made.add(text)
    return made


def ours(pool: Pool, candidates: list[str]) -> list[bool]:
    """Whether each candidate is too near to the pool."""
    return [pool.most_similar(text, THRESHOLD) is not None for text in candidates]


def theirs(pool: list[list[str]], candidates: list[str]) -> list[bool]:
    """The same decisions with rouge_score, pair by pair, as Self-Instruct's code takes them."""
    tokenizer = tokenizers.DefaultTokenizer(use_stemmer=False)
    decided = []
    for text in candidates:
        words = tokenizer.tokenize(text)
        decided.append(max(rouge_scorer._score_lcs(other, words).fmeasure for other in pool) > THRESHOLD)
    return decided


def timed(work: Callable[[], R]) -> tuple[float, R]:
    """Processor seconds of one call, and what it gave."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def main() -> None:
    texts_in, candidates = texts()
    fill, pool = timed(lambda: filled(texts_in))
    every, similar = timed(lambda: ours(pool, candidates))
    near = [text for text, is_near in zip(candidates, similar, strict=True) if is_near]
    new = [text for text, is_near in zip(candidates, similar, strict=True) if not is_near]
    few = [*near[:NEAR], *new[:NEW]]
    cut = [tokenizers.DefaultTokenizer(use_stemmer=False).tokenize(text) for text in texts_in]
    their, decided = timed(lambda: theirs(cut, few))
    if decided != [True] * NEAR + [False] * NEW:
        raise SystemExit("the two do not agree")
    mine = timed(lambda: [ours(pool, few) for _ in range(REPEAT)])[0] / REPEAT
    report = {
        "machine": {
            "command": "python benchmarks/novelty.py",
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "packages": {name: version(name) for name in ("rouge-score", "zephyrctl")},
        },
        "pool": POOL,
        "threshold": THRESHOLD,
        "all candidates, zephyrctl alone": {
            "candidates": CANDIDATES,
            "too_near": sum(similar),
            "cpu_seconds_to_fill_the_pool": round(fill, 3),
            "cpu_ms_per_candidate": round(1000 * every / CANDIDATES, 3),
        },
        "the same candidates": {
            "candidates": len(few),
            "rouge_score_cpu_ms_per_candidate": round(1000 * their / len(few), 1),
            "zephyrctl_cpu_ms_per_candidate": round(1000 * mine / len(few), 3),
            "times_faster": round(their / mine),
        },
    }
    (HERE / "novelty.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"pool of {POOL:,}; {sum(similar)} of {CANDIDATES:,} candidates are too near to it")
    print(f"  zephyrctl, all of them      {1000 * every / CANDIDATES:10.3f} ms per candidate")
    print(f"  rouge_score, {len(few)} of them     {1000 * their / len(few):10.1f} ms per candidate")
    print(f"  zephyrctl, the same {len(few)}       {1000 * mine / len(few):10.3f} ms   x{their / mine:.0f}")


if __name__ == "__main__":
    main()
