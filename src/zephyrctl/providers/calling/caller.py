"""The one way to ask a model.

What is in the ledger is replayed, what is not is asked, stored, and only then handed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from zephyrctl.errors import Interrupted
from zephyrctl.events import Emit, silent
from zephyrctl.ledger.entries import Run, Spend
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import AnyProvider, Ask
from zephyrctl.providers.calling.job import Result
from zephyrctl.providers.calling.lane import Sleep
from zephyrctl.providers.calling.overlap import overlapping
from zephyrctl.providers.calling.round import Asking
from zephyrctl.providers.calling.settings import CallSettings
from zephyrctl.providers.calling.stopping import Stop
from zephyrctl.providers.calling.switchboard import Switchboard

__all__ = ["CallSettings", "Caller"]

P = TypeVar("P")
R = TypeVar("R")


class Caller:
    """Asks models for one step. To be used in a `with` statement, by any thread inside it.

    Calls go out from one event loop in a thread of its own, so connections last from wave to wave. While it is
    open (in the main thread), a first SIGINT, SIGTERM or SIGHUP stops new calls, gives those on the wire their
    grace and raises Interrupted; a second one leaves at once. After any fatal error or signal it asks no more: every
    further call raises the same error. `sleep` is there for tests.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        run: Run,
        emit: Emit = silent,
        settings: CallSettings | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._stop = Stop()
        self._board = Switchboard(
            ledger, run, settings or CallSettings(), emit=emit, stop=self._stop, sleep=sleep
        )
        self._open = False

    def __enter__(self) -> Caller:
        self._open = True
        self._stop.on_stop = self._board.signalled
        self._stop.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._open = False
        try:
            with self._board.interruptible():
                self._stop.leaving = True
                self._board.close()
        finally:
            self._stop.__exit__(kind, error, tb)
        for line in self._board.lines:
            self._board.tell(line.model)
        if error is None:
            self._board.watch.tell([line.tally for line in self._board.lines])
            if self._stop.number is not None:
                raise Interrupted(self._stop.number)

    def ask(self, provider: AnyProvider, asks: Sequence[Ask], *, task: str) -> list[Result]:
        """The answers of one model, in the order of the asks; see `ask_all`."""
        return self.ask_all([(provider, ask) for ask in asks], task=task)

    def ask_all(self, pairs: Sequence[tuple[AnyProvider, Ask]], *, task: str) -> list[Result]:
        """The answers of several models, in order; equal requests are sent once.

        A Failure stands where bounded retries gave no reply, or where nothing is sent (`unpaid`). Raises
        AuthError, BudgetReached, ProviderDown, Locked, UsageError, Interrupted and the ledger's errors; what had
        arrived by then is kept.
        """
        if not self._open:
            raise RuntimeError("a Caller asks only inside its `with` statement")
        with self._board.interruptible():
            return Asking(self._board, task, pairs).run()

    def overlap(self, parts: Sequence[P], work: Callable[[P], R], ahead: int = 2) -> Iterator[R]:
        """The results of `work(part)` in order, where parts are worked on in threads of their own.

        So the stragglers of one part do not hold up the next; at most `ahead` parts beyond the one waited for are
        begun. An exception in any part stops all and is raised once.
        """
        with self._board.interruptible():
            yield from overlapping(parts, work, ahead, self._board.give_up)

    def summary(self) -> list[dict[str, Any]]:
        """What a manifest keeps of each model asked (see Tally.as_dict).

        `in_doubt` counts over all processes of this run, the rest this one.
        """
        doubts = self._board.ledger.in_doubt(self._board.run.id)
        for line in self._board.lines:
            line.tally.dropped = tuple(line.model.dropped)
        tallies = [line.tally for line in self._board.lines]
        return [t.as_dict(in_doubt=doubts.get((t.provider, t.origin, t.model), (0, 0))) for t in tallies]

    def spent(self) -> Spend:
        """What this run paid, reserved and has in doubt, over all its processes."""
        return self._board.ledger.spend(self._board.run.id)
