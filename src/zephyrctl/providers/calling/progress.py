"""How one `ask` goes, told seldom enough that telling costs nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

from zephyrctl.events import Calls, Emit, Progress
from zephyrctl.money import UUSD
from zephyrctl.providers.base import UNPAID, Failure
from zephyrctl.providers.calling.job import Result
from zephyrctl.providers.calling.lane import Lane
from zephyrctl.providers.calling.purse import Purse

_SECONDS = 0.1
_WARM_UP = 1.0
"""Seconds of asking before rates are told: earlier ones are noise."""


class Meter:
    """Counts settled asks; emits Calls at the start, at the end, and between them at most ten times a second.

    Where only models of this machine are asked (`local`) nothing is paid, and it emits Progress instead.
    Used by the asking thread (replays) and by the event loop's (fresh replies).
    """

    def __init__(
        self,
        emit: Emit,
        task: str,
        total: int,
        purse: Purse,
        *,
        local: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._emit = emit
        self._task = task
        self.total = total
        self.done = 0
        self._purse = purse
        self._local = local
        self._clock = clock
        self._lock = threading.Lock()
        self._weights: Counter[str] = Counter()
        self._settled: set[str] = set()
        self._replayed = 0
        self._failures = 0
        self._fresh = 0
        self._tokens = 0
        self._lanes: dict[int, tuple[Lane, int]] = {}
        self._started: float | None = None
        self._when = -1.0
        self._last: Calls | Progress | None = None

    def expect(self, keys: Iterable[str]) -> None:
        """More asks, by key; equal asks count together."""
        with self._lock:
            for key in keys:
                if key in self._settled:
                    self.done += 1
                else:
                    self._weights[key] += 1

    def begin(self) -> None:
        """Tell the state at the beginning, once."""
        if self._last is None:
            self.tell()

    def watch(self, lane: Lane) -> None:
        """Asking begins; calls of this lane are shown."""
        with self._lock:
            if self._started is None:
                self._started = self._clock()
            self._lanes.setdefault(id(lane), (lane, lane.line.tally.limited))

    def add(self, key: str, result: Result) -> None:
        """Another request is settled."""
        with self._lock:
            self._settled.add(key)
            weight = self._weights.pop(key, 0)
            self.done += weight
            if isinstance(result, Failure):
                self._failures += weight if result.reason != UNPAID else 0
            elif result.replayed:
                self._replayed += weight
            else:
                self._fresh += 1
                if result.tokens is not None:
                    self._tokens += result.tokens.prompt + result.tokens.completion
        if self.done >= self.total or self._clock() - self._when >= _SECONDS:
            self.tell()

    def tell(self) -> None:
        """Emit the state as it is, unless it was told already."""
        with self._lock:
            event = self._event()
            if event == self._last:
                return
            self._last, self._when = event, self._clock()
        self._emit(event)

    def _event(self) -> Calls | Progress:
        if self._local:
            return Progress(self._task, self.done, self.total)
        lanes = list(self._lanes.values())
        passed = 0.0 if self._started is None else self._clock() - self._started
        rate = self._fresh / passed if passed >= _WARM_UP else 0.0
        spent, left = self._purse.spent, self._purse.left
        return Calls(
            task=self._task,
            done=self.done,
            total=self.total,
            replayed=self._replayed,
            in_flight=sum(lane.limiter.in_flight for lane, _ in lanes),
            ceiling=sum(lane.limiter.limit for lane, _ in lanes),
            requests_per_second=rate,
            tokens_per_second=self._tokens / passed if passed >= _WARM_UP else 0.0,
            limited=sum(lane.line.tally.limited - before for lane, before in lanes),
            failures=self._failures,
            spent=None if spent is None else spent / UUSD,
            left=None if left is None else left / UUSD,
            eta=(self.total - self.done) / rate if rate > 0 else None,
        )
