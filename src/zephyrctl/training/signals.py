"""SIGTERM and SIGINT ask a run to stop at the end of its step; a second signal stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from zephyrctl.errors import Interrupted


@dataclass
class StopSignal:
    """`number` is the signal that came, None while none has."""

    number: int | None = None


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """A StopSignal that SIGTERM and SIGINT set for the time of the block. Outside the main thread it is
    never set."""
    state = StopSignal()

    def note(number: int, frame: FrameType | None) -> None:
        if state.number is not None:
            raise Interrupted(number)
        state.number = number

    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
