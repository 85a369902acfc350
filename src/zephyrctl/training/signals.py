"""SIGTERM, SIGUSR1, SIGHUP and SIGINT ask a run to stop at the end of its step; a second one stops it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from zephyrctl.errors import Interrupted, Preempted, ZephyrError

PARENT = "ZEPHYRCTL_PARENT"
"""Names the process that started this one and watches it. Such a process hears of a signal twice where a batch system
sends it to everybody, so a second one is not for it to act on: the one that watches kills it."""
_BATCH = (signal.SIGTERM, signal.SIGUSR1)
"""What a batch system sends to a job that it will start again."""


@dataclass
class StopSignal:
    """`number` is the signal that came, None while none has."""

    number: int | None = None


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """A StopSignal that SIGTERM, SIGUSR1, SIGINT and, unless it is ignored (nohup), SIGHUP set for the time of the
    block. Outside the main thread it is never set."""
    state = StopSignal()

    def note(number: int, frame: FrameType | None) -> None:
        if state.number is not None and number != signal.SIGUSR1 and PARENT not in os.environ:
            raise Interrupted(number)
        state.number = state.number or number

    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    wanted = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def preparing() -> Iterator[None]:
    """In the block, SIGTERM and SIGUSR1 end what comes before and after training (reading data, waiting for other
    machines) as a run that is to be taken up again: exit 75, like a saved one, so that a batch script puts its job back
    into the queue. In training `stop_signal` stands above it. Outside the main thread it does nothing."""

    def leave(number: int, frame: FrameType | None) -> None:
        # not an Exception: libraries drop those without a word, while they are imported for one
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in _BATCH}
    try:
        yield
    except KeyboardInterrupt as error:
        if not error.args or error.args[0] not in _BATCH:
            raise
        raise Preempted(
            f"asked to stop ({signal.Signals(error.args[0]).name}) while nothing was being trained",
            resume="the same command begins again here",
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def stopped(
    number: int, saved: str, *, resume: str = "the same command goes on from the checkpoint"
) -> ZephyrError:
    """The error with which a run ends that signal `number` stopped; `saved` says what is kept.

    Ctrl-C and a lost terminal end as interruptions; what a batch system sends means that the same command may go on
    later (exit 75).
    """
    if number in _BATCH:
        return Preempted(f"asked to stop ({signal.Signals(number).name}); {saved}", resume=resume)
    return Interrupted(number, resume=resume)
