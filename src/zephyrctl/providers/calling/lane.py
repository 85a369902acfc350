"""The way to one model: who is next, how many may be out, and when all have to wait. Lives in the event loop."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine

from zephyrctl.events import Emit, Warning_
from zephyrctl.providers.base import Retryable
from zephyrctl.providers.calling.job import Job
from zephyrctl.providers.calling.limiter import Limiter
from zephyrctl.providers.calling.line import Line
from zephyrctl.providers.calling.pace import Pace, Taken
from zephyrctl.providers.calling.retry import share
from zephyrctl.providers.calling.settings import CallSettings

Sleep = Callable[[float], Awaitable[None]]
_AHEAD = 4
"""At most a quarter more calls than fit on the wire have their intent written ahead."""
_WORTH_TELLING = 10.0
"""Seconds of waiting that people are told of."""


def now() -> float:
    """The running loop's clock, in seconds."""
    return asyncio.get_running_loop().time()


class Lane:
    """Jobs of one model in order. `out` counts those between intent and stored reply.

    A permit is held on the wire alone; because intents and replies need their time to reach the disk, a few more
    are written ahead: as many as the wire gives back in that time.
    """

    def __init__(
        self,
        line: Line,
        settings: CallSettings,
        *,
        ceiling: int,
        emit: Emit,
        sleep: Sleep,
        pump: Callable[[Lane], None],
    ) -> None:
        self.line = line
        self.queue: deque[Job] = deque()
        self.limiter = Limiter(ceiling)
        self.out = 0
        self.open = 0
        """Jobs that are not settled, wherever they are."""
        self.pace = Pace(*_rates(line, settings))
        self.suspects: list[tuple[Job, Retryable]] = []
        """Jobs that used up their attempts while nothing was answered: their own fault, or an outage."""
        self.barren = 0
        """Refusals (429) in a row."""
        self.closed = False
        """Whether nobody may go any more."""
        self._emit = emit
        self._sleep = sleep
        self._pump = pump
        self._waiters: deque[asyncio.Future[int | None]] = deque()
        self._not_before = 0.0
        self._told = False
        self._pacing = False
        self._holds = 0
        self._wire_time = 0.0
        self._disk_time = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def held(self) -> bool:
        """Whether everybody was told to wait."""
        return self._not_before > 0

    @property
    def room(self) -> bool:
        """Whether one more intent may be written."""
        limit = self.limiter.limit
        return not self.held and self.out < limit + self._ahead(limit)

    def depart(self, job: Job) -> tuple[float, Taken]:
        """Take from the allowance per minute for a job: the seconds it has to wait first, and what was taken."""
        if not self.pace.limited:
            return 0.0, Taken()
        time = now()
        tokens = self.pace.estimate(job.size, job.provider.bound(job.request.body)[1])
        wait = self.pace.wait(time, tokens)
        return (wait, Taken()) if wait > 0 else (0.0, self.pace.take(time, tokens))

    async def permit(self) -> int | None:
        """The right to be on the wire, as the limiter's ticket; None where a stop came first."""
        if self.closed:
            return None
        if not self._waiters and not self.held and self.limiter.room:
            return self.limiter.sent()
        waiter: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        ticket = await waiter
        if ticket is not None and not self._goes_on():
            self.limiter.troubled(ticket)  # the stop came between the permit and its use
            return None
        return ticket

    def _goes_on(self) -> bool:
        return not self.closed

    def answered(self, ticket: int) -> None:
        """Tell the limiter that a call was answered, and whether others wait to go."""
        self.barren = 0
        self.limiter.answered(ticket, eager=bool(self.queue))

    def wake(self) -> None:
        """Let those go on the wire for whom there is room."""
        while self._waiters and self.limiter.room and not self.held:
            self._waiters.popleft().set_result(self.limiter.sent())

    def close(self) -> None:
        """Nobody goes any more, not even who asks for a permit later."""
        self.closed = True
        self.queue.clear()
        while self._waiters:
            self._waiters.popleft().set_result(None)
        for task in self._tasks:
            task.cancel()

    def hold(self, seconds: float) -> bool:
        """Nobody goes for that long; whether that is longer than known so far."""
        until = now() + seconds
        if self.closed or seconds <= 0 or until <= self._not_before:
            return False
        started, self._not_before = not self.held, until
        if started:
            self._start(self._release(seconds))
        return True

    def slow_down(self, seconds: float) -> None:
        """`hold`, because the server asks for it: a long wait is told, once until it is over."""
        if self.hold(seconds) and seconds >= _WORTH_TELLING and not self._told:
            self._told = True
            self._emit(Warning_(f"{self.line.model.label} asks to slow down: waiting {seconds:.0f} s"))

    def pause(self, seconds: float) -> None:
        """The allowance per minute is used up: look again after that time."""
        if not self._pacing:
            self._pacing = True
            self._start(self._unpause(seconds))

    def timed(self, *, wire: float, disk: float) -> None:
        """How long a call was on the wire and how long its two writes took."""
        self._wire_time += (wire - self._wire_time) / 16 if self._wire_time else wire
        self._disk_time += (disk - self._disk_time) / 16 if self._disk_time else disk

    def _ahead(self, limit: int) -> int:
        if not self._wire_time:
            return 0
        return min(max(1, limit // _AHEAD), math.ceil(limit * self._disk_time / self._wire_time))

    async def _release(self, seconds: float) -> None:
        """They do not come back at the very moment at which everybody else does."""
        while True:
            until = self._not_before
            self._holds += 1
            await self._sleep(seconds + share(self.line.model.label, self._holds) * min(1.0, seconds / 4))
            if self._not_before == until:
                break
            seconds = max(0.0, self._not_before - now())
        self._not_before, self._told = 0.0, False
        self.wake()
        self._pump(self)

    async def _unpause(self, seconds: float) -> None:
        await self._sleep(seconds)
        self._pacing = False
        self._pump(self)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _rates(line: Line, settings: CallSettings) -> tuple[int | None, int | None]:
    """The stricter of our own limits and those that the endpoint is known to have."""
    found = []
    for name in ("rpm", "tpm"):
        given = [v for v in (getattr(settings, name), getattr(line.model, name, None)) if v is not None]
        found.append(min(given) if given else None)
    return found[0], found[1]
