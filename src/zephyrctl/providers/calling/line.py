"""Is the model at the other end alive? Its circuit breaker, and rows that failed with nothing answered since."""

from __future__ import annotations

from typing import Protocol

from zephyrctl.errors import ProviderDown
from zephyrctl.providers.base import BatchProvider, Model, Retryable
from zephyrctl.providers.calling.tally import Tally
from zephyrctl.redact import redact

_SIGNS_OF_AN_OUTAGE = ("transport", "timeout", "server_error", "bad_envelope", "conflict")
"""Rubbish with status 200 is one as well: a maintenance page looks like that."""


class Row(Protocol):
    """What is counted of a row here: failed attempts, and the line's signs of life at the first of them."""

    tries: int
    trouble: int | None


class Line:
    """The connection to one model. Trips after `breaker` failures in a row, of whichever rows.

    `life` counts signs of life: whatever only a server that works sends.
    """

    def __init__(self, model: Model, breaker: int) -> None:
        self.model = model
        self.local = isinstance(model, BatchProvider)
        """Whether it runs on this machine, in batches."""
        self.tally = Tally.of(model)
        self.life = 0
        self.in_a_row = 0
        self._breaker = breaker
        self._answers = False

    def answered(self) -> None:
        """A reply is there, of now or of an earlier run: the model exists."""
        self._answers = True

    def alive(self) -> None:
        """The server said something that only a working one says."""
        self.in_a_row = 0
        self.life += 1

    def failed(self, row: Row, error: Retryable) -> None:
        """Count a failed attempt. Raises ProviderDown when the model does not seem to be there at all."""
        if error.reason not in _SIGNS_OF_AN_OUTAGE:
            if error.reason != "too_many_files":
                self.alive()
            return
        if row.trouble is None:
            row.trouble = self.life
        self.in_a_row += 1
        if self.in_a_row >= self._breaker:
            raise self.down(error, f"{self.in_a_row} calls in a row failed")

    def suspect(self, row: Row, error: Retryable) -> bool:
        """Whether a row without attempts left may be the victim of an outage: nothing was answered since its first
        failure."""
        return error.reason in _SIGNS_OF_AN_OUTAGE and row.trouble == self.life

    def verdict(self, rows: int, tries: int, error: Retryable, *, before: bool) -> None:
        """Judge the last `rows` rows of a wave, all suspects, when no other is left.

        Raises ProviderDown for an outage. One row alone can be what breaks the server, and so can several that failed
        in an earlier run as well (`before`): they fail on their own. Not where nothing was ever answered, nor where
        no connection came about: that is no row's fault.
        """
        if rows > 1 and not before:
            raise self.down(error, f"no answer to the last {rows} rows, {tries} attempts each")
        if not self._answers or (error.reason == "transport" and not error.maybe_billed):
            raise self.down(error, f"no answer after {tries} attempts")
        self.life += 1

    def down(self, error: Retryable, why: str) -> ProviderDown:
        """The error that ends the work for now."""
        return ProviderDown(
            f"{self.model.label} at {self.model.origin}: {why}; the last one: {redact(error.detail)}",
            hint="what arrived is kept and not paid again; run the same command later",
            resume="run the same command again",
        )
