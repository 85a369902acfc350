"""Measures the comparison of prompts with evaluation suites: `python benchmarks/decontamination.py`.

100,000 items of made-up suites (8 to 60 words) and 20,000 prompts (5 to 300 words), words drawn with frequencies that
fall with their rank as those of English do (Zipf). One prompt in fifty holds 20 words of an item among its own (where
the item drawn has so many), one in a hundred is an item with other case and punctuation, one in a hundred an item as it
stands.

Beside it a plain script that does what such scripts do: it keeps every 13-gram of the suites in one Python set and
looks each 13-gram of a prompt up in it. Both read the same files, each in a process of its own, one after the other.
The plain script finds no items of fewer than 13 words and does not tell what it found; whatever it finds, the other
side has to find as well. Writes benchmarks/decontamination.json and prints a table.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import random
import re
import resource
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ITEMS, PROMPTS = 100_000, 20_000
SEED = 20_261_122
N = 13


def made_up(rng: random.Random) -> tuple[list[str], list[str]]:
    """Items and prompts."""
    letters = string.ascii_lowercase
    words = sorted({"".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(60_000)})
    rng.shuffle(words)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))

    def text(least: int, most: int) -> str:
        return (
            " ".join(rng.choices(words, cum_weights=weights, k=rng.randint(least, most))).capitalize() + "."
        )

    items = [text(8, 60) for _ in range(ITEMS)]
    prompts = []
    for number in range(PROMPTS):
        prompt, item = text(5, 300), rng.choice(items)
        if number % 50 == 0 and len(item.split()) >= 20:
            start = rng.randrange(len(item.split()) - 19)
            prompt += " " + " ".join(item.split()[start : start + 20]) + " " + text(5, 20)
        elif number % 100 == 1:
            prompt = item.upper().replace(" ", ", ", 3)
        elif number % 100 == 2:
            prompt = item
        prompts.append(prompt)
    return items, prompts


def ours(folder: Path) -> dict[str, Any]:
    """Through the stage's own decontaminator."""
    from zephyrctl.benchmarks.decontamination import Decontaminator
    from zephyrctl.benchmarks.suites import load_suites
    from zephyrctl.events import silent
    from zephyrctl.records import Message

    started = time.perf_counter()
    suites = load_suites([folder / "suite.jsonl"], silent)
    read = time.perf_counter()
    decontaminator = Decontaminator(suites)
    built = time.perf_counter()
    asked = [[Message(role="user", content=text)] for text in prompts_in(folder)]
    ready = time.perf_counter()
    hits = [decontaminator.hit(messages) is not None for messages in asked]
    done = time.perf_counter()
    return {"read": read - started, "build": built - read, "compare": done - ready, "hits": hits,
            "by_how": decontaminator.record()["by_how"]}  # fmt: skip


def plain(folder: Path) -> dict[str, Any]:
    """A set of 13-grams, as strings."""

    def grams(text: str) -> list[str]:
        words = re.findall(r"\w+", text.lower())
        return [" ".join(words[i : i + N]) for i in range(len(words) - N + 1)]

    started = time.perf_counter()
    with (folder / "suite.jsonl").open(encoding="utf-8") as lines:
        items = [json.loads(line)["prompt"] for line in lines]
    read = time.perf_counter()
    known = {gram for item in items for gram in grams(item)}
    built = time.perf_counter()
    asked = prompts_in(folder)
    ready = time.perf_counter()
    hits = [any(gram in known for gram in grams(prompt)) for prompt in asked]
    done = time.perf_counter()
    return {"read": read - started, "build": built - read, "compare": done - ready, "hits": hits}


def prompts_in(folder: Path) -> list[str]:
    """The prompts."""
    found: list[str] = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    return found


def side(name: str, folder: Path) -> None:
    """One side, in this process; its numbers on stdout."""
    found = {"ours": ours, "plain": plain}[name](folder)
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


def measured(name: str, folder: Path) -> dict[str, Any]:
    """One side, in a process of its own."""
    command = [sys.executable, __file__, name, str(folder)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(told)
    return found


def told(found: dict[str, Any]) -> dict[str, Any]:
    """What is written down of one side."""
    return {
        "seconds_to_read": round(found["read"], 2),
        "seconds_to_build": round(found["build"], 2),
        "prompts_per_second": round(PROMPTS / found["compare"]),
        "peak_mib": round(found["peak_mib"]),
        "hits": sum(found["hits"]),
        **({"by_how": found["by_how"]} if "by_how" in found else {}),
    }


def main() -> None:
    items, prompts = made_up(random.Random(SEED))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = "".join(json.dumps({"prompt": item}) + "\n" for item in items)
        (folder / "suite.jsonl").write_text(rows, encoding="utf-8")
        (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
        mine, other = measured("ours", folder), measured("plain", folder)
    missed = sum(o and not m for m, o in zip(mine["hits"], other["hits"], strict=True))
    if missed:
        raise SystemExit(f"{missed} prompts that the plain script finds are not found")
    report = {
        "machine": {
            "command": "python benchmarks/decontamination.py",
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "items": ITEMS,
        "prompts": PROMPTS,
        "zephyrctl": told(mine),
        "plain_script": told(other),
        "times_as_fast": round(other["compare"] / mine["compare"], 2),
        "times_its_build_time": round(mine["build"] / other["build"], 2),
        "share_of_its_memory": round(mine["peak_mib"] / other["peak_mib"], 2),
    }
    (HERE / "decontamination.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for label in ("plain_script", "zephyrctl"):
        print(label, json.dumps(report[label]))
    print(f"x{report['times_as_fast']} as fast, {report['share_of_its_memory']:.0%} of the memory")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        side(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
