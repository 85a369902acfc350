"""Progress of one `ask`, told seldom enough that telling costs nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from zephyrctl.events import Emit, Progress

_SECONDS = 0.5


class Meter:
    """Counts finished asks; emits Progress at the start, at the end, and between them every 1 % or 0.5 s."""

    def __init__(self, emit: Emit, task: str, keys: Sequence[str]) -> None:
        self._emit = emit
        self._task = task
        self._weights = Counter(keys)
        self._total = len(keys)
        self._done = 0
        self._told = -1
        self._when = 0.0

    def add(self, key: str) -> None:
        """Another request is settled; equal asks count together."""
        self._done += self._weights[key]
        quiet = time.monotonic() - self._when
        enough = self._done - self._told >= max(1, self._total // 100)
        if self._done >= self._total or quiet >= _SECONDS or (enough and quiet >= _SECONDS / 10):
            self.tell()

    def tell(self) -> None:
        """Emit the state as it is, unless it was told already."""
        if self._done != self._told:
            self._told, self._when = self._done, time.monotonic()
            self._emit(Progress(self._task, self._done, self._total))
