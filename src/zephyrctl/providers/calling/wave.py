"""The jobs that one `ask` waits for."""

from __future__ import annotations

from concurrent.futures import Future

from zephyrctl.providers.calling.job import Result
from zephyrctl.providers.calling.progress import Meter


class Wave:
    """Results by key as they come; `done` resolves when all are there. Used in the event loop only."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.results: dict[str, Result] = {}
        self.done: Future[None] = Future()
        self._open = 0
        self._sealed = False

    def add(self) -> None:
        """One more job to wait for."""
        self._open += 1

    def seal(self) -> None:
        """There are no more jobs."""
        self._sealed = True
        self._look()

    def settle(self, key: str, result: Result) -> None:
        """A job is done."""
        self.results[key] = result
        self._open -= 1
        self.meter.add(key, result)
        self._look()

    def fail(self, error: BaseException) -> None:
        """Nothing more will come."""
        if not self.done.done():
            self.done.set_exception(error)

    def _look(self) -> None:
        if self._sealed and self._open == 0 and not self.done.done():
            self.done.set_result(None)
