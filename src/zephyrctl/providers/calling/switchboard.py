"""What the waves of one caller share: lines to models, the event loop with its engine, money, and the end of it all."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import replace

from zephyrctl.errors import Interrupted, UsageError
from zephyrctl.events import Emit, Event, Note, Warning_
from zephyrctl.ledger.entries import Request, Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import dollars
from zephyrctl.providers.base import AnyProvider, Ask, Model
from zephyrctl.providers.calling.ignored import Watch
from zephyrctl.providers.calling.job import Job
from zephyrctl.providers.calling.lane import Sleep
from zephyrctl.providers.calling.line import Line
from zephyrctl.providers.calling.looping import LoopThread
from zephyrctl.providers.calling.online import Engine
from zephyrctl.providers.calling.purse import Purse
from zephyrctl.providers.calling.settings import CallSettings
from zephyrctl.providers.calling.stopping import Stop

Place = tuple[str, str, str]

_REDRAW = 1000
"""Draws of one set; another set begins that many further on."""
_LEAVE_SECONDS = 5.0
_LOOK_SECONDS = 0.25


class Switchboard:
    """Used by all threads of one caller. After a fatal error or a signal it connects nobody any more."""

    def __init__(
        self, ledger: Ledger, run: Run, settings: CallSettings, *, emit: Emit, stop: Stop, sleep: Sleep
    ) -> None:
        self.ledger = ledger
        self.run = run
        self.settings = settings
        self.purse = Purse(ledger, run, settings.budget)
        self.watch = Watch(self.emit)
        self._outside = emit
        self.sleep = sleep
        self._stop = stop
        self._lock = threading.RLock()
        self._telling = threading.Lock()
        self._lines: dict[Place, Line] = {}
        self._model_locks: dict[int, threading.Lock] = {}
        self._thread: LoopThread | None = None
        self._engine: Engine | None = None
        self._over: BaseException | None = None
        self._hurried = False
        self._recovered = False
        self._told: dict[Place, list[str]] = {}
        self.probed: set[str] = set()
        """The models of which a few rows were tried before a batch."""
        self.batched = False
        """Whether a batch was made."""

    @property
    def lines(self) -> list[Line]:
        """Every model asked so far."""
        return list(self._lines.values())

    def emit(self, event: Event) -> None:
        """Tell the outside, one thread at a time."""
        with self._telling:
            self._outside(event)

    def job(self, provider: AnyProvider, ask: Ask) -> Job:
        """The request that an ask stands for."""
        if self.settings.redraw:
            ask = replace(ask, draw=ask.draw + _REDRAW * self.settings.redraw)
        request = Request.of(
            provider=provider.kind,
            origin=provider.origin,
            endpoint=provider.endpoint,
            model=provider.label,
            body=provider.wire(ask),
            draw=ask.draw,
        )
        return Job(provider, self._line(provider), request, ask)

    def model_lock(self, provider: AnyProvider) -> threading.Lock:
        """Held by the thread that computes with a model of this machine."""
        with self._lock:
            return self._model_locks.setdefault(id(provider), threading.Lock())

    def check(self) -> None:
        """Raises what ended the asking, if anything did."""
        over = self._over or (self._engine.over if self._engine is not None else None)
        if over is None and self._stop.number is not None:
            over = Interrupted(self._stop.number)
        if over is not None:
            raise over

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be begun."""
        ended = self._engine is not None and self._engine.over is not None
        return ended or self._over is not None or self._stop.asked

    def loop(self) -> tuple[LoopThread, Engine]:
        """The event loop's thread and its engine, started at the first call."""
        with self._lock:
            if self._thread is None or self._engine is None:
                self.recover()
                self.purse.open()
                self._thread = LoopThread("calls")
                self._engine = self._thread.run(self._make_engine())
                if self._over is not None:
                    self._thread.loop.call_soon_threadsafe(self._engine.stop, self._over)
            return self._thread, self._engine

    def recover(self) -> None:
        """Account for calls of processes that died. Raises UsageError where `in_doubt=stop` and there are any."""
        with self._lock:
            if self._recovered:
                return
            self._recovered = True
        found = self.ledger.recover()
        if found.calls:
            worth = f", at most {dollars(found.uusd)}" if found.uusd else ""
            were = "call was" if found.calls == 1 else "calls were"
            self.emit(
                Warning_(
                    f"{found.calls} {were} in flight when an earlier process died: no reply arrived, they may have "
                    f"been billed{worth}, and they are asked again where they are needed"
                )
            )
        if self.settings.in_doubt == "stop":
            calls, uusd = self.ledger.unanswered_doubt(self.run.id)
            if calls:
                error = UsageError(
                    f"{calls} calls of this step may have been billed without a reply ({dollars(uusd)} at most), and "
                    "in_doubt=stop forbids to send them again",
                    hint="--set in_doubt=resend asks them again where they are needed",
                )
                self.give_up(error)
                raise error

    def close(self) -> None:
        """End the event loop; connections are let go. After a second signal that takes seconds at most."""
        if self._thread is None or self._engine is None:
            return
        closing = asyncio.run_coroutine_threadsafe(self._engine.close(), self._thread.loop)
        self._wait(closing)
        if closing.done():
            self._thread.close()
            closing.result()

    def signalled(self, hurry: bool) -> None:
        """A signal asks to stop: what is on the wire gets its grace, or none in a hurry."""
        self.give_up(Interrupted(self._stop.number or 2), 0.0 if hurry else None)

    def give_up(self, error: BaseException, grace: float | None = None) -> None:
        """Begin nothing more and let every wave end with the error, or with an earlier one."""
        if self._over is None:
            self._over = error
        if grace == 0.0:
            self._hurried = True
        if self._thread is not None and self._engine is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._thread.loop.call_soon_threadsafe(self._engine.stop, error, grace)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Turns KeyboardInterrupt, the second signal, into an end at once and Interrupted."""
        try:
            yield
        except KeyboardInterrupt:
            number = self._stop.number or 2
            if not self._stop.asked:  # it came from elsewhere
                self.give_up(Interrupted(number), 0.0)
            if self._thread is not None and self._engine is not None:
                ended = asyncio.run_coroutine_threadsafe(self._engine.ended(), self._thread.loop)
                with contextlib.suppress(KeyboardInterrupt):  # a third signal
                    self._wait(ended)
            raise Interrupted(number) from None

    def tell(self, provider: Model) -> None:
        """Say once what a provider has to say: where it asks, what it leaves out, which address it gave up."""
        said = list(getattr(provider, "notices", ()))
        said += [
            f"{provider.label} does not take this setting, so it is left out: {name}"
            for name in provider.dropped
        ]
        for sentence in said:
            self._say_once(provider, sentence)

    def asked_online(self, providers: Iterable[AnyProvider]) -> None:
        """Say once for each of these models that batches were wanted and it has none."""
        for provider in providers:
            self._say_once(provider, f"{provider.label}: no batch API, so it is asked online")

    # --- inside ---

    def _wait(self, work: Future[None]) -> None:
        """Until it is done, or, once there is no time any more, for some seconds."""
        left = _LEAVE_SECONDS
        while not work.done() and left > 0:
            wait([work], timeout=_LOOK_SECONDS)
            if self._hurried:
                left -= _LOOK_SECONDS

    def _say_once(self, provider: Model, sentence: str) -> None:
        told = self._told.setdefault((provider.kind, provider.label, provider.origin), [])
        if sentence not in told:
            told.append(sentence)
            self.emit(Note(sentence))

    async def _make_engine(self) -> Engine:
        return Engine(
            self.ledger, self.run, self.settings, purse=self.purse, emit=self.emit, sleep=self.sleep
        )

    def _line(self, provider: AnyProvider) -> Line:
        place = (provider.kind, provider.label, provider.origin)
        line = self._lines.get(place)
        if line is not None:
            return line
        with self._lock:
            if place not in self._lines:
                self._lines[place] = Line(provider, self.settings.patience)
                self.tell(provider)
            return self._lines[place]
