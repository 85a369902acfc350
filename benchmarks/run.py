"""Measures zephyrctl against named peers in one run, as ratios: `make bench`.

Writes benchmarks/latest.json and prints a table.

startup   CPU time of `zephyrctl --help` against `python -c pass` and `typer --help`
calls     2,000 calls through caller and ledger (durable) against the same calls of the teacher alone
store     writing and re-reading 20,000 preference rows, checked, against `datasets.save_to_disk` / `load_from_disk`
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
RUNS = 7
ROWS = 20_000
CALLS = 2_000


def cpu_seconds(command: list[str]) -> float:
    """User and system time of one finished child."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def startup() -> dict[str, float]:
    """Median CPU seconds of three programs, run in turn so that a drifting machine hits all alike."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "typer --help": [str(BIN / "typer"), "--help"],
        "zephyrctl --help": [str(BIN / "zephyrctl"), "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(RUNS):
        for name, command in commands.items():
            times[name].append(cpu_seconds(command))
    return {name: statistics.median(values) for name, values in times.items()}


def timed(work: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def calls() -> dict[str, float]:
    """Wall seconds of the same 2,000 sandbox calls: durable, replayed, and bare."""
    from zephyrctl.events import silent
    from zephyrctl.ledger.ledger import Ledger
    from zephyrctl.providers.base import Ask, Sampling
    from zephyrctl.providers.calling.caller import Caller
    from zephyrctl.providers.sandbox import SandboxProvider
    from zephyrctl.records import Message
    from zephyrctl.sandbox.teacher import reply
    from zephyrctl.sandbox.world import train_tasks

    tasks = train_tasks(CALLS, 1)
    asks = [Ask((Message(role="user", content=t.turns[0]),), Sampling(max_tokens=64, seed=1)) for t in tasks]

    def through_the_ledger(folder: str) -> None:
        with Ledger.open(Path(folder) / "ledger.sqlite") as ledger:
            Caller(ledger, emit=silent, concurrency=32, run_id="bench").ask(
                SandboxProvider("teacher"), asks, task="bench"
            )

    def bare() -> None:
        for task in tasks:
            reply("teacher", [{"role": "user", "content": task.turns[0]}], draw=0, seed=1, temperature=0.0)

    with tempfile.TemporaryDirectory() as folder:
        return {
            "durable": timed(lambda: through_the_ledger(folder)),
            "replayed": timed(lambda: through_the_ledger(folder)),
            "teacher alone": timed(bare),
        }


def store() -> dict[str, float]:
    """Wall seconds for writing and reading 20,000 preference rows, ours (checked, durable) and the peer's (neither)."""
    from datasets import Dataset, load_from_disk

    from zephyrctl.artifacts.step import Step, Work
    from zephyrctl.artifacts.store import Store
    from zephyrctl.records import Message, PreferenceRow, prompt_id
    from zephyrctl.stages.binarize.config import BinarizeConfig

    rows = []
    for i in range(ROWS):
        prompt = [Message(role="user", content=f"question {i} " + "word " * 60)]
        chosen = [Message(role="assistant", content=f"answer {i} " + "yes " * 150)]
        rejected = [Message(role="assistant", content=f"answer {i} " + "no " * 150)]
        rows.append(
            PreferenceRow(prompt_id=prompt_id(prompt), prompt=prompt, chosen=chosen, rejected=rejected)
        )
    plain = [row.model_dump() for row in rows]

    def write(root: Path) -> None:
        step = Step(
            Work(Store.open(root)), BinarizeConfig(), name="prefs", kind="prefs", inputs=[], world="real"
        )
        with step.open() as staging:
            staging.write_rows("train", rows)
            staging.commit()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        return {
            "write, ours": timed(lambda: write(root / "a")),
            "write, datasets.save_to_disk": timed(
                lambda: Dataset.from_list(plain).save_to_disk(str(root / "b"))
            ),
            "read, ours (checked, validated)": timed(
                lambda: sum(1 for _ in Store.open(root / "a").resolve("prefs").rows())
            ),
            "read, datasets.load_from_disk": timed(lambda: sum(1 for _ in load_from_disk(str(root / "b")))),
        }


def machine() -> dict[str, Any]:
    """What was measured on."""
    packages = ("typer", "pyarrow", "datasets", "pydantic", "openai", "torch", "transformers", "trl")
    return {
        "command": "make bench",
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "packages": {name: version(name) for name in packages},
    }


def main() -> None:
    report: dict[str, Any] = {"machine": machine()}
    for name, measure in (("startup", startup), ("calls", calls), ("store", store)):
        report[name] = measure()
        base = next(iter(report[name].values()))
        print(name)
        for label, seconds in report[name].items():
            print(f"  {label:34} {seconds:8.3f} s   x{seconds / base:.2f}")
    (HERE / "latest.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
