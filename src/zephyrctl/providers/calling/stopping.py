"""Signals while calls are out: the first asks for an orderly stop, the second for an immediate one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """While it is open, the first SIGINT, SIGTERM or SIGHUP sets `number` and calls `on_stop(False)`.

    Each further one calls `on_stop(True)`, for an end at once, and, unless `leaving` is set, raises
    KeyboardInterrupt. Signals that the process ignores stay ignored. Outside the main thread, where Python
    delivers none, nothing happens. Handlers are put back on leaving.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.leaving = False
        """Whether the end has come anyway: then nothing is left to interrupt."""
        self.on_stop: Callable[[bool], object] | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self.number is not None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # A handler that was not set from Python reads as None and cannot be put back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.asked
        self.number = self.number or number
        if self.on_stop is not None:
            self.on_stop(again)
        if again and not self.leaving:
            raise KeyboardInterrupt(self.number)
