"""Rows shared out among worker processes in chunks, the outcome in the rows' order. For work that a tokenizer does,
which Python's threads cannot share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from zephyrctl.errors import EnvironmentFault

Made = TypeVar("Made")

CHUNK = 1_000
"""Rows that a worker is given at a time."""
WORTH_IT = 20_000
"""Rows from which on the workers' start, a few seconds, is won back."""

_held: dict[str, Any] = {}


def in_chunks(
    rows: list[Any], tool: Any, work: Callable[[Any, list[Any]], Made], processes: int | None = None
) -> Iterator[Made]:
    """`work(tool, chunk)` for chunks of `rows`, in order.

    `work`, `tool` and what is made must be picklable. Without `processes`: this process alone for few rows, else one
    per processor. Raises what `work` raises, and EnvironmentFault where a worker was killed.
    """
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    if processes is None:
        processes = _processors() if len(rows) >= WORTH_IT else 1
    processes = min(processes, len(chunks))
    if processes <= 1:
        yield from (work(tool, chunk) for chunk in chunks)
        return
    # Not forked: the parent may hold threads of torch and of the tokenizer, and their locks.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(
            processes, mp_context=context, initializer=_begin, initargs=(tool, work)
        ) as pool:
            yield from pool.map(_one, chunks)
    except BrokenProcessPool:
        raise EnvironmentFault(
            "one of the processes that tokenise the rows was killed, most often for want of memory",
            hint="more memory, or fewer rows at a time: --data REF=0.5",
        ) from None


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begin(tool: Any, work: Callable[..., Any]) -> None:
    """Makes a worker ready: it leaves Ctrl-C to its parent, and ends when the parent does, however that happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _held.update(tool=tool, work=work)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _one(chunk: list[Any]) -> Any:
    return _held["work"](_held["tool"], chunk)
