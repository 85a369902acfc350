"""The state of the connection to one model: is it alive, and does it ask everybody to wait?"""

from __future__ import annotations

from zephyrctl.errors import ProviderDown
from zephyrctl.providers.base import Model, Retryable
from zephyrctl.providers.tally import Tally
from zephyrctl.redact import redact

_SIGNS_OF_AN_OUTAGE = ("transport", "timeout", "server_error")


class Line:
    """One model's circuit breaker and shared pause.

    Trips after `breaker` failures in a row, of whichever rows.
    """

    def __init__(self, model: Model, breaker: int) -> None:
        self.model = model
        self.tally = Tally.of(model)
        self.not_before = 0.0
        self._breaker = breaker
        self._in_a_row = 0
        self._answers = False

    def answered(self) -> None:
        """A reply came, now or in an earlier run: the model is alive."""
        self._in_a_row = 0
        self._answers = True

    def failed(self, error: Retryable) -> None:
        """Count a failed attempt. Raises ProviderDown when the model does not seem to be there at all."""
        if error.reason not in _SIGNS_OF_AN_OUTAGE:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row >= self._breaker:
            raise self.down(error, f"{self._in_a_row} calls in a row failed")

    def exhausted(self, error: Retryable, attempts: int) -> None:
        """A row used up its attempts.

        Raises ProviderDown where nothing was ever answered: then it is not the row's fault.
        """
        if error.reason in _SIGNS_OF_AN_OUTAGE and not self._answers:
            raise self.down(error, f"no answer after {attempts} attempts")

    def down(self, error: Retryable, why: str) -> ProviderDown:
        """The error that ends the work for now."""
        return ProviderDown(
            f"{self.model.label} at {self.model.origin}: {why}; the last one: {redact(error.detail)}",
            hint="what arrived is kept and not paid again; run the same command later",
            resume="run the same command again",
        )

    def hold(self, until: float) -> None:
        """Ask all callers of this model to wait until `until` (the event loop's clock)."""
        self.not_before = max(self.not_before, until)
