"""What every client measures of itself in the same way: wall time, processor time with its children's, memory.

Imports nothing beyond the standard library, for the peers run in environments of their own.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUESTION = "Question {number}: name a word that rhymes with another word, and say why it does."


def options() -> argparse.Namespace:
    """--url, --calls, --concurrency, and the folder for whatever the client writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--task", default="calls")
    return parser.parse_args()


def questions(calls: int, start: int = 0) -> list[str]:
    """Short prompts, all different."""
    return [QUESTION.format(number=number) for number in range(start, start + calls)]


def processor_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))


def resident() -> float:
    """Memory of this process now, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def timed(work: Callable[[], int]) -> dict[str, Any]:
    """Wall and processor seconds of `work`, which says how many calls it got an answer to."""
    cpu, started = processor_seconds(), time.perf_counter()
    answered = work()
    return {
        "answered": answered,
        "seconds": time.perf_counter() - started,
        "cpu": processor_seconds() - cpu,
    }


def tell(result: dict[str, Any]) -> None:
    """The last line of standard output: what was measured."""
    sys.stdout.flush()
    print("\n" + json.dumps(result), flush=True)
