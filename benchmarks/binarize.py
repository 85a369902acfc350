"""Measures `binarize` beside a plain `datasets.map` script that does the same: `python benchmarks/binarize.py`.

A feedback artifact is made first (4 completions for each prompt, 1.5 kB each on average, ratings with rationales and
critiques), then both read it in processes of their own: the highest overall score against a random lower one, pairs and
best answers as Parquet, one split by hash of the prompt. Times, processor time and peak memory go into
benchmarks/binarize.json. Memory is the sum of the proportional share of every process of the run, sampled.

rows      64,000 prompts, both, `--repeats` times in turn; the medians are compared
linear    a quarter of them, and `--large` (1,000,000 with `--large 1000000`; needs about 15 GB of disk), ours alone
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

HERE = Path(__file__).parent
PEER = HERE / "peers" / "binarize_map.py"
COMPLETIONS = 4
MEAN_CHARACTERS = 1500
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64_000)
    parser.add_argument("--large", type=int, default=0, help="ours at this size too")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="num_proc of the peer")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=HERE / "binarize.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        result = measure(Path(folder), options)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for line in shown(result):
        print(line)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All runs; each size has a store of its own."""
    store = make_store(folder / "rows", options.rows)
    ours, peer = [], []
    for _ in range(options.repeats):
        ours.append(run_ours(store))
        peer.append(run_peer(store, folder / "peer", options.processes))
    sizes = {options.rows: median(ours)}
    for rows in (options.rows // 4, options.large):
        if rows:
            other = make_store(folder / str(rows), rows)
            sizes[rows] = median(
                [run_ours(other) for _ in range(1 if rows > options.rows else options.repeats)]
            )
    one, two = median(ours), median(peer)
    return {
        "machine": {
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "packages": versions("pyarrow", "datasets", "pydantic"),
        },
        "rows": options.rows,
        "completions": COMPLETIONS,
        "input_mib": size_of(store),
        "zephyrctl": {**one, "runs": ours},
        "datasets.map": {**two, "num_proc": options.processes, "runs": peer},
        "ratio": {name: round(two[name] / one[name], 2) for name in ("seconds", "cpu_seconds", "peak_mib")},
        "sizes": {str(rows): sizes[rows] for rows in sorted(sizes)},
    }


def run_ours(store: Path) -> dict[str, float]:
    """The command as people run it, in a new process."""
    command = [sys.executable, "-m", "zephyrctl", "binarize", "--again", "--store", str(store), "--quiet"]
    return watched(command, store.parent)


def run_peer(store: Path, folder: Path, processes: int) -> dict[str, float]:
    """The script, in a new process with an empty cache."""
    (data,) = store.glob("feedback/v*/data")
    with tempfile.TemporaryDirectory(dir=store.parent) as cache:
        command = [sys.executable, str(PEER), str(data), str(folder), str(processes)]
        return watched(
            command, store.parent, {"HF_HOME": cache, "HF_DATASETS_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        )


def watched(command: list[str], folder: Path, more: dict[str, str] | None = None) -> dict[str, float]:
    """Wall and processor seconds of a process with its children, and the peak of their memory in MiB."""
    begin = time.perf_counter()
    with (folder / "stderr.txt").open("wb") as errors:
        child = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, **(more or {})}
        )
        peak, over = [0.0], threading.Event()
        watcher = threading.Thread(target=watch, args=(child.pid, peak, over))
        watcher.start()
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        over.set()
        watcher.join()
    if child.returncode:
        raise SystemExit(f"{command} failed:\n{(folder / 'stderr.txt').read_text()[-2000:]}")
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mib": round(peak[0]),
    }


def watch(pid: int, peak: list[float], over: threading.Event) -> None:
    """Samples the memory of a process tree ten times a second."""
    while not over.wait(0.1):
        peak[0] = max(peak[0], sum(map(memory, tree(pid))))


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = listing.read_text().split()
        except OSError:
            continue
        for child in found:
            yield from tree(int(child))


def memory(pid: int) -> float:
    """The proportional share of a process in MiB; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def make_store(root: Path, rows: int) -> Path:
    """A store with a feedback artifact of so many prompts."""
    from zephyrctl.artifacts.step import Step, Work
    from zephyrctl.artifacts.store import Store
    from zephyrctl.config import StageConfig
    from zephyrctl.records import split_of

    class Made(StageConfig):
        """What stands in the manifest as the maker of the rows."""

        stage: ClassVar[str] = "gen-prefs"

    root.mkdir()
    work = Work(Store.open(root / "artifacts"))
    with Step(work, Made(), name="feedback", kind="feedback", inputs=[], world="real").open() as staging:
        for start in range(0, rows, 500):
            made = list(feedback(start, min(500, rows - start)))
            for side in ("train", "test"):
                staging.write_batch(
                    side, as_batch([r for r in made if split_of(r["prompt_id"], 0.1) == side])
                )
        staging.commit()
    return root / "artifacts"


def as_batch(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    from zephyrctl.artifacts.table import arrow_schema
    from zephyrctl.records import FeedbackRow

    return pa.RecordBatch.from_pylist(rows, schema=arrow_schema(FeedbackRow))


def corpus() -> str:
    """Words by a law of few and many, as in any language, so that the files compress as text does."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(2, 9))) for _ in range(30_000)]
    weights = [1 / (rank + 2) for rank in range(len(words))]
    return " ".join(rng.choices(words, weights, k=1_500_000))


WORDS = ""


def feedback(start: int, count: int) -> Iterator[dict[str, Any]]:
    """Rows of kind feedback, the same for the same places."""
    global WORDS
    WORDS = WORDS or corpus()
    rng = random.Random(start)

    def text(mean: float) -> str:
        size = max(20, int(rng.lognormvariate(-0.18, 0.6) * mean))
        place = rng.randrange(len(WORDS) - size)
        return WORDS[place : place + size].strip()

    for number in range(start, start + count):
        prompt = f"{number} {text(300)}"
        completions = []
        for model in rng.sample(range(17), COMPLETIONS):
            quality, answer = rng.gauss(3.4, 0.9), text(MEAN_CHARACTERS)
            marks = [min(5, max(1, round(quality + rng.gauss(0, 0.6)))) for _ in ASPECTS]
            completions.append(
                {
                    "completion_id": hashlib.sha256(f"{model} {answer}".encode()).hexdigest(),
                    "model": f"model-{model}",
                    "text": answer,
                    "finish_reason": "stop",
                    "ratings": [
                        {"aspect": a, "value": float(m), "rationale": text(80), "position": 1, "types": []}
                        for a, m in zip(ASPECTS, marks, strict=True)
                    ],
                    "overall": float(min(10, max(1, round(2 * quality + rng.gauss(0, 1))))),
                    "critique": text(300),
                    "draw": 0,
                    "opinions": [],
                }
            )
        yield {
            "prompt_id": hashlib.sha256(prompt.encode()).hexdigest(),
            "prompt": [{"role": "user", "content": prompt}],
            "completions": completions,
            "judge": "judge",
            "source": "made",
        }


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of every number."""
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}


def size_of(store: Path) -> int:
    """The size of the feedback's data files in MiB."""
    return sum(path.stat().st_size for path in store.glob("feedback/v*/data/*")) >> 20


def versions(*names: str) -> dict[str, str]:
    """The versions of installed packages."""
    from importlib.metadata import version

    return {name: version(name) for name in names}


def shown(result: dict[str, Any]) -> Iterator[str]:
    """The result as lines for people."""
    yield f"{result['rows']:,} prompts x {result['completions']}, {result['input_mib']} MiB of Parquet"
    yield f"{'':>24} {'seconds':>9} {'cpu s':>9} {'peak MiB':>9}"
    for name in ("zephyrctl", "datasets.map", "ratio"):
        row = result[name]
        yield f"{name:>24} {row['seconds']:>9} {row['cpu_seconds']:>9} {row['peak_mib']:>9}"
    for rows, row in result["sizes"].items():
        yield f"{f'ours, {int(rows):,} rows':>24} {row['seconds']:>9} {row['cpu_seconds']:>9} {row['peak_mib']:>9}"


if __name__ == "__main__":
    main()
