"""The first signal is noted, the second stops at once, and the handlers are put back."""

from __future__ import annotations

import contextlib
import signal
import threading

import pytest

from zephyrctl.errors import Interrupted, Preempted
from zephyrctl.training.signals import PARENT, preparing, stop_signal, stopped

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


@in_main
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_batch_systems_warning_before_training_is_no_failure(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def prepare() -> None:
        with preparing():
            with stop_signal() as stop:
                signal.raise_signal(number)
                assert stop.number == number, "in training it is the training that listens"
            with contextlib.suppress(Exception):  # as libraries do while they are imported
                signal.raise_signal(number)
            pytest.fail("the signal was lost")

    with pytest.raises(Preempted, match=number.name) as caught:
        prepare()
    assert caught.value.exit_code == 75
    assert signal.getsignal(number) is before


@in_main
def test_ctrl_c_before_training_is_left_to_the_command_line() -> None:
    with pytest.raises(KeyboardInterrupt), preparing():
        signal.raise_signal(signal.SIGINT)


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


@in_main
def test_a_watched_process_leaves_the_second_signal_to_its_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT, "1")
    with stop_signal() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
    assert stop.number == signal.SIGUSR1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 129)]
)
def test_what_a_batch_system_sends_asks_for_the_same_command_later(number: int, code: int) -> None:
    error = stopped(number, "step 3 is saved")
    assert error.exit_code == code
    assert ("step 3 is saved" in error.message) == isinstance(error, Preempted)
    assert "checkpoint" in str(error.resume)
