"""The first signal is noted, the second stops at once, and the handlers are put back."""

from __future__ import annotations

import signal
import threading

import pytest

from zephyrctl.errors import Interrupted
from zephyrctl.training.signals import stop_signal

in_main = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread alone"
)


@in_main
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_two_signals(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with stop_signal() as stop:
        assert stop.number is None
        signal.raise_signal(number)
        assert stop.number == number
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(number)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with stop_signal() as stop:
            seen.append((stop.number, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, True)]
