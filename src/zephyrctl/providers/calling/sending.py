"""One call: the intent on the disk, the request on the wire, the reply on the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

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

    async def call(self, job: Job, lane: Lane, taken: Taken) -> Result:
        """The reply to a job, stored.

        Raises NotSent, Stopped, Retryable, Rejected, and what is fatal (AuthError, UsageError, the ledger's errors).
        """
        ready = getattr(job.provider, "ready", None)
        if ready is not None:  # servers of its own: starting them can take longer than a call may
            await ready()
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
        cost = job.cost(tokens)
        reply = stored(received.body, reading)
        kept = await self._post.finish(Finished(begun, job.key, reply, cost, received.request_id))
        lane.timed(wire=arrived - sent, disk=written - start + self._time() - arrived)
        self._paid(cost)
        if kept is reply or kept.body == reply.body:
            return job.answer_of(reading, cost, replayed=False)
        return job.answer(kept, replayed=False)

    async def _exchange(self, job: Job, lane: Lane, attempt: int, ticket: int) -> tuple[Received, Reading]:
        """The reply's bytes and what they say; the permit is given back as soon as they are here."""
        try:
            received = await self._send(job, lane, ticket)
            if received.rest:
                lane.hold(min(received.rest, self._longest))
            return received, job.provider.read(received.body)
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
        except Exception as error:
            await self._post.fail(Ended(attempt, "error", type(error).__name__))
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
