"""Asking over a network: jobs go out as their lanes have room, wait, try again, and stop in good order.

Everything here runs in one event loop; `Caller` hands in the work from other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from zephyrctl.errors import Locked, TryAgain, ZephyrError
from zephyrctl.events import Emit
from zephyrctl.ledger.entries import Begun, InBatch, Leased, NoRoom, Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import AnyProvider, Closable, Rejected, Retryable
from zephyrctl.providers.calling.files import Files
from zephyrctl.providers.calling.job import Job, Result
from zephyrctl.providers.calling.lane import Lane, Sleep
from zephyrctl.providers.calling.line import Line
from zephyrctl.providers.calling.pace import Taken
from zephyrctl.providers.calling.posting import Post
from zephyrctl.providers.calling.purse import Purse
from zephyrctl.providers.calling.sending import NotSent, Sender, Stopped
from zephyrctl.providers.calling.settings import CallSettings
from zephyrctl.providers.calling.wave import Wave

_LOOK_AGAIN = 0.25
_LOOK_SELDOM = 5.0
_BEAT = 0.5


class Engine:
    """The lanes of all models, and the jobs in them. A fatal error or a stop ends it for good."""

    def __init__(
        self,
        ledger: Ledger,
        run: Run,
        settings: CallSettings,
        *,
        purse: Purse,
        emit: Emit,
        sleep: Sleep,
    ) -> None:
        self.over: BaseException | None = None
        """Why nothing more is sent; None while all is well."""
        self.post = Post(ledger, run, settings.budget)
        self._ledger = ledger
        self._settings = settings
        self._purse = purse
        self._emit = emit
        self._sleep = sleep
        self._sender = Sender(self.post, settings, purse.pay)
        self._lanes: dict[int, Lane] = {}
        self._jobs: dict[str, tuple[Job, list[Wave]]] = {}
        """Jobs that are not settled, and who waits for them."""
        self._waves: list[Wave] = []
        self._calls: dict[asyncio.Task[None], Job] = {}
        self._naps: set[asyncio.Task[None]] = set()
        self._providers: dict[int, AnyProvider] = {}
        self._tight: NoRoom | None = None
        """That the budget had no room lately: then calls go only as others end."""
        self._turns = 0
        self._dry = 0.0
        self._watch: asyncio.Task[None] | None = None
        self._winding: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self.stopping = asyncio.Event()
        self._beating = False
        self._files = Files(emit)
        self._ceiling = self._files.ceiling(settings.concurrency)

    # --- work comes in ---

    def open(self, wave: Wave) -> None:
        """A new wave; its jobs follow by `add`."""
        if self.over is not None:
            wave.fail(self.over)
        else:
            self._waves.append(wave)
            if not self._beating:
                self._beat()

    def add(self, wave: Wave, jobs: Sequence[Job]) -> None:
        """Jobs of a wave; one that another wave waits for already is sent once."""
        if self.over is not None:
            return
        try:
            self._add(wave, jobs)
        except Exception as error:  # nobody else would hear of it, and the wave would wait for ever
            self.stop(error)

    def _add(self, wave: Wave, jobs: Sequence[Job]) -> None:
        lanes: dict[int, Lane] = {}
        for job in jobs:
            wave.add()
            if job.key in self._jobs:
                self._jobs[job.key][1].append(wave)
                continue
            lane = self._lane(job.line)
            self._jobs[job.key] = (job, [wave])
            self._providers[id(job.provider)] = job.provider
            lane.queue.append(job)
            lane.open += 1
            lanes[id(lane)] = lane
            wave.meter.watch(lane)
        for lane in lanes.values():
            self._pump(lane)

    def seal(self, wave: Wave) -> None:
        """The wave has all its jobs."""
        wave.seal()
        self._forget(wave)

    # --- the end ---

    def stop(self, error: BaseException, grace: float | None = None) -> None:
        """Send nothing more; calls on the wire get the grace; then every wave fails with the error.

        A later stop can shorten the grace.
        """
        fault = isinstance(error, Exception) and not isinstance(error, ZephyrError)
        if self.over is None or (fault and isinstance(self.over, ZephyrError)):
            # A fault of ours must not hide behind an outage that happened at the same time.
            self.over = error
        self.stopping.set()
        for lane in self._lanes.values():  # now: a call whose intent arrives in this very moment must not go
            lane.close()
        if grace == 0:
            self._hurry.set()
        if self._winding is None:
            left = self._settings.grace if grace is None else grace
            self._winding = asyncio.get_running_loop().create_task(self._wind_down(left))

    async def ended(self) -> None:
        """Until a stop is carried out."""
        if self._winding is not None:
            await asyncio.shield(self._winding)

    async def close(self) -> None:
        """Let all connections go. Whatever is still out is stopped first."""
        if self._calls or self._jobs:
            self.stop(TryAgain("the caller was closed while calls were out"))
        await self.ended()
        for task in self._naps:
            task.cancel()
        for provider in self._providers.values():
            if isinstance(provider, Closable):
                with contextlib.suppress(Exception):
                    await provider.aclose()

    async def _wind_down(self, grace: float) -> None:
        for task in [*self._naps, *([self._watch] if self._watch else []), *self._sender.starting]:
            task.cancel()
        if self._calls and not self._hurry.is_set():
            hurry = asyncio.ensure_future(self._hurry.wait())
            everything = asyncio.ensure_future(asyncio.wait(set(self._calls)))
            await asyncio.wait({hurry, everything}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            everything.cancel()
        while self._calls:
            # What is on its way to the disk gets there: that takes moments, or fails.
            for task, job in list(self._calls.items()):
                if job.on_wire:
                    task.cancel()
            await asyncio.wait(set(self._calls), timeout=_LOOK_AGAIN)
        await self.post.drain()
        assert self.over is not None
        self._jobs.clear()
        for wave in self._waves:
            wave.fail(self.over)
        self._waves.clear()

    # --- jobs go out ---

    def _lane(self, line: Line) -> Lane:
        lane = self._lanes.get(id(line))
        if lane is None:
            lane = self._lanes[id(line)] = Lane(
                line,
                self._settings,
                ceiling=self._ceiling,
                emit=self._emit,
                sleep=self._sleep,
                pump=self._pump,
            )
        return lane

    def _pump(self, lane: Lane) -> None:
        while lane.queue and lane.room and self.over is None:
            if self._tight is not None and self._turns <= 0:
                return
            job = lane.queue[0]
            wait, taken = lane.depart(job)
            if wait > 0:
                lane.pause(wait)
                return
            lane.queue.popleft()
            self._turns -= 1
            lane.out += 1
            task = asyncio.get_running_loop().create_task(self._treat(job, lane, taken))
            self._calls[task] = job

    async def _treat(self, job: Job, lane: Lane, taken: Taken) -> None:
        """One call of a job, and what follows from its end. Never raises."""
        freed = True
        try:
            freed = await self._call(job, lane, taken)
        except (Stopped, asyncio.CancelledError):
            pass
        except Exception as error:
            self.stop(error)
        lane.out -= 1
        self._calls.pop(asyncio.current_task(), None)  # type: ignore[arg-type]
        if self._tight is not None:
            self._after_tight(freed)
        else:
            self._pump(lane)

    async def _call(self, job: Job, lane: Lane, taken: Taken) -> bool:
        """Whether a reservation was given back."""
        try:
            result = await self._sender.call(job, lane, taken)
        except NotSent as error:
            lane.pace.give_back(taken)
            self._not_sent(job, lane, error.begun)
            return False
        except Rejected as error:
            job.line.alive()
            result = job.failure(error.reason, error.detail)
        except Retryable as error:
            self._again(job, lane, error)
            return True
        self._settle(job, lane, result)
        return True

    def _settle(self, job: Job, lane: Lane, result: Result) -> None:
        _, waves = self._jobs.pop(job.key, (job, []))
        lane.open -= 1
        for wave in waves:
            wave.settle(job.key, result)
            self._forget(wave)
        if lane.suspects:
            self._judge(lane)

    def _forget(self, wave: Wave) -> None:
        if wave.done.done() and wave in self._waves:
            self._waves.remove(wave)

    # --- jobs that got no reply ---

    def _again(self, job: Job, lane: Lane, error: Retryable) -> None:
        retry, line = self._settings.retry, lane.line
        line.failed(job, error)
        if error.reason == "rate_limit":
            wait = self._limited(job, lane, error)
        elif error.reason == "too_many_files":
            wait = self._files.ran_out(lane.limiter, retry.backoff(job.key, 0))
        else:
            job.tries += 1
            if job.tries >= retry.attempts:
                self._exhausted(job, lane, error)
                return
            asked = min(error.retry_after or 0.0, retry.max_wait)
            wait = max(retry.backoff(job.key, job.tries - 1), asked)
            worth = max(2, lane.limiter.limit)
            if line.in_a_row and line.in_a_row % worth == 0:
                # Everybody fails: fresh rows need not find that out for themselves.
                lane.hold(retry.backoff(line.model.label, line.in_a_row // worth - 1))
        line.tally.retries += 1
        self._later(job, lane, wait)

    def _limited(self, job: Job, lane: Lane, error: Retryable) -> float:
        retry, line = self._settings.retry, lane.line
        line.tally.limited += 1
        wait = retry.rate_limit(job.key, job.limited, error.retry_after)
        job.limited += 1
        hold = error.retry_after
        lane.barren += 1
        if not hold and lane.barren > 1 and lane.limiter.in_flight == 0:
            # Nothing at all gets through: the next one waits as well, longer each time.
            hold = wait = max(wait, retry.rate_limit(line.model.label, lane.barren - 2, None))
        job.waited += wait
        if job.waited > retry.max_wait:
            raise line.down(error, f"asks to wait longer than {retry.max_wait:g} s in all")
        if hold:
            lane.slow_down(hold)
        return wait

    def _exhausted(self, job: Job, lane: Lane, error: Retryable) -> None:
        if lane.line.suspect(job, error):
            lane.suspects.append((job, error))
            self._judge(lane)
        else:
            self._give_up(job, lane, error)

    def _judge(self, lane: Lane) -> None:
        """Suspects fail on their own once the model answered others; if nothing else is left, it may be down."""
        line = lane.line
        if lane.open == len(lane.suspects):
            job, error = lane.suspects[-1]
            tried = self._ledger.tried([job.key for job, _ in lane.suspects])
            before = all(tried.get(job.key, 0) > job.tries for job, _ in lane.suspects)
            line.verdict(lane.open, job.tries, error, before=before)
        cleared = [(job, error) for job, error in lane.suspects if job.trouble != line.life]
        lane.suspects = [(job, error) for job, error in lane.suspects if job.trouble == line.life]
        for job, error in cleared:
            self._give_up(job, lane, error)

    def _give_up(self, job: Job, lane: Lane, error: Retryable) -> None:
        self._settle(job, lane, job.failure(error.reason, f"{error.detail} ({job.tries} attempts)"))

    def _not_sent(self, job: Job, lane: Lane, begun: Begun) -> None:
        if isinstance(begun, Leased):
            wait = min(_LOOK_SELDOM, max(_LOOK_AGAIN, job.waited / 4))
            job.waited += wait
            if job.waited > self._settings.retry.max_wait:
                raise Locked(
                    f"another process (pid {begun.pid} on {begun.host}) is asking the same and does not come to "
                    "an end",
                    hint="wait for that process, or end it; then run the same command again",
                    resume="run the same command again",
                )
            self._later(job, lane, wait)
        elif isinstance(begun, NoRoom):
            self._no_room(job, lane, begun)
        else:
            assert isinstance(begun, InBatch)
            raise TryAgain(
                f"{lane.line.model.label}: a call of this step is part of batch {begun.batch}, which is still "
                "open at the provider",
                hint="--mode batch fetches its results; asking online as well would pay twice",
                resume="run the same command again with --mode batch",
            )

    def _no_room(self, job: Job, lane: Lane, no_room: NoRoom) -> None:
        """Calls in flight may cost less than was reserved for them: wait for one to end, then try again."""
        if no_room.hopeless:
            raise self._budget_reached(no_room)
        lane.queue.appendleft(job)
        self._tight, self._turns = no_room, 0

    def _after_tight(self, freed: bool) -> None:
        """Without room in the budget, each call that ends lets two try, so that the number in flight can grow again."""
        if freed:
            self._turns, self._dry = 2, 0.0
            for lane in self._lanes.values():
                self._pump(lane)
        if not self._calls and self.over is None and (self._watch is None or self._watch.done()):
            self._watch = asyncio.get_running_loop().create_task(self._look_again())

    async def _look_again(self) -> None:
        """What is reserved belongs to other processes: see in a second whether they freed some of it."""
        try:
            while not self._calls and self._jobs and self.over is None:
                await self._sleep(1.0)
                self._dry += 1.0
                if self._dry > self._settings.retry.max_wait and self._tight:
                    self.stop(self._budget_reached(self._tight))
                    return
                self._turns = 1
                for lane in self._lanes.values():
                    self._pump(lane)
        except Exception as error:
            self.stop(error)

    def _budget_reached(self, no_room: NoRoom) -> ZephyrError:
        done = sum(wave.meter.done for wave in self._waves)
        total = sum(wave.meter.total for wave in self._waves)
        return self._purse.reached(no_room, done=done, total=total)

    def _later(self, job: Job, lane: Lane, wait: float) -> None:
        if self.over is None:
            nap = asyncio.get_running_loop().create_task(self._nap(job, lane, wait))
            self._naps.add(nap)
            nap.add_done_callback(self._naps.discard)

    async def _nap(self, job: Job, lane: Lane, wait: float) -> None:
        await self._sleep(wait)
        lane.queue.appendleft(job)
        self._turns = max(self._turns, 1)
        self._pump(lane)

    def _beat(self) -> None:
        """The live line goes on while nothing arrives."""
        self._beating = bool(self._waves)
        for wave in self._waves:
            wave.meter.tell()
        if self._beating:
            asyncio.get_running_loop().call_later(_BEAT, self._beat)
