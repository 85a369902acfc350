"""One call: the intent on the disk, the request on the wire, the reply on the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from zephyrctl.errors import AuthError, UsageError
from zephyrctl.ledger.entries import Begun, Ended, EndState, Finished, Intent, StoredReply
from zephyrctl.providers.base import Provider, Reading, Received, Rejected, Retryable
from zephyrctl.providers.calling.job import Job, Result, stored
from zephyrctl.providers.calling.lane import Lane
from zephyrctl.providers.calling.pace import Taken
from zephyrctl.providers.calling.posting import Post
from zephyrctl.providers.calling.settings import CallSettings


class NotSent(Exception):
    """The ledger says that the call is not to be sent now: `begun` tells why."""

    def __init__(self, begun: Begun) -> None:
        super().__init__(type(begun).__name__)
        self.begun = begun


class Stopped(Exception):
    """A stop came before the call was sent."""


class Sender:
    """Makes calls. `paid` is told the cost of each stored reply, in uusd, or None without a price."""

    def __init__(self, post: Post, settings: CallSettings, paid: Callable[[int | None], None]) -> None:
        self._post = post
        self._deadline = settings.deadline
        self._longest = settings.retry.max_wait
        self._paid = paid
        self._time = asyncio.get_running_loop().time
        self.starting: set[asyncio.Task[None]] = set()
        """Tasks that wait for servers to start; a stop need not wait for them."""

    async def call(self, job: Job, lane: Lane, taken: Taken) -> Result:
        """The reply to a job, stored.

        Raises NotSent, Stopped, Retryable, Rejected, and what is fatal (AuthError, UsageError, the ledger's errors).
        """
        ready = getattr(job.provider, "ready", None)
        if ready is not None:  # servers of its own: starting them can take longer than a call may
            await self._until(ready)
        if lane.closed:
            raise Stopped
        start = self._time()
        begun = await self._post.begin(Intent(job.request, job.reserve))
        if isinstance(begun, StoredReply):
            return job.answer(begun, replayed=True)
        if not isinstance(begun, int):
            raise NotSent(begun)
        written = self._time()
        ticket = await lane.permit()
        if ticket is None:
            await self._post.fail(Ended(begun, "cancelled", "stopped"))
            raise Stopped
        sent = self._time()
        received, reading = await self._exchange(job, lane, begun, ticket)
        arrived = self._time()
        tokens = reading.tokens
        if tokens is not None:
            lane.pace.correct(taken, tokens.prompt, tokens.completion)
        try:
            reply = stored(received.body, reading)
            cost = job.cost(reply.tokens)
            kept = await self._post.finish(Finished(begun, job.key, reply, cost, received.request_id))
        except Exception as error:
            # It was billed, whatever kept it from the disk.
            self._post.last_word(Ended(begun, "in_doubt", type(error).__name__))
            raise
        lane.timed(wire=arrived - sent, disk=written - start + self._time() - arrived)
        self._paid(cost)
        if kept is reply or kept.body == reply.body:
            return job.answer_of(reading, cost, replayed=False)
        return job.answer(kept, replayed=False)

    async def _until(self, ready: Callable[[], Awaitable[None]]) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self.starting.add(task)
        try:
            await ready()
        finally:
            self.starting.discard(task)

    async def _exchange(self, job: Job, lane: Lane, attempt: int, ticket: int) -> tuple[Received, Reading]:
        """The reply's bytes and what they say; the permit is given back as soon as they are here."""
        try:
            received = await self._send(job, lane, ticket)
            if received.rest:
                lane.slow_down(min(received.rest, self._longest))
            reading = _read(job, received)
            job.line.alive()
            return received, reading
        except Retryable as error:
            state: EndState = (
                "timeout" if error.reason == "timeout" else "in_doubt" if error.maybe_billed else "error"
            )
            await self._post.fail(Ended(attempt, state, error.reason, error.status, error.request_id))
            raise
        except Rejected as error:
            state = "in_doubt" if error.maybe_billed else "error"
            await self._post.fail(Ended(attempt, state, error.reason, error.status, error.request_id))
            raise
        except asyncio.CancelledError:
            self._post.last_word(Ended(attempt, "in_doubt", "stopped"))
            raise
        except (AuthError, UsageError) as error:
            await self._post.fail(Ended(attempt, "error", type(error).__name__))
            raise
        except Exception as error:
            # Whatever this is, it came after the request may have left.
            await self._post.fail(Ended(attempt, "in_doubt", type(error).__name__))
            raise

    async def _send(self, job: Job, lane: Lane, ticket: int) -> Received:
        provider = cast(Provider, job.provider)  # local models take another way
        job.on_wire = True
        over = lane.limiter.troubled
        try:
            async with asyncio.timeout(self._deadline):
                received = await provider.send(job.request.body)
            over = lane.answered
            return received
        except TimeoutError:
            raise Retryable(
                "timeout", f"no whole reply within {self._deadline:g} s", maybe_billed=True
            ) from None
        except Retryable as error:
            if error.reason == "rate_limit":
                over = lane.limiter.limited
            raise
        except Rejected:
            over = lane.answered
            raise
        finally:
            job.on_wire = False
            over(ticket)
            lane.wake()


def _read(job: Job, received: Received) -> Reading:
    """What the reply says. A fault of the reader is the reply's fault, and the reply was billed."""
    try:
        return job.provider.read(received.body)
    except Retryable:
        raise
    except Exception as error:
        raise Retryable(
            "bad_envelope", f"the reply cannot be read ({type(error).__name__})", maybe_billed=True
        ) from None
