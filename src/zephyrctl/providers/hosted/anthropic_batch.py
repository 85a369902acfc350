"""Anthropic's Message Batches: all requests in one call, results as a stream of lines, at half price.

A batch there carries no word of ours, and its custom ids are shown only when it has ended. So after a crash between
handing in and noting its name, a batch is ours if it was made after our row, holds as many requests, is not known to
be another one, and its custom ids are the same set. While such a candidate still runs, nothing is handed in again:
in a workspace where other programs run batches of the same size, that can mean waiting for theirs, a day at most.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from zephyrctl.providers.base import BatchLimits, BatchLine, BatchResult, BatchState, Retryable
from zephyrctl.providers.calling.bulk_plan import not_before
from zephyrctl.providers.hosted.anthropic import AnthropicProvider
from zephyrctl.providers.hosted.batch_wire import (
    CONTROL_SECONDS,
    UPLOAD_SECONDS,
    Bytes,
    Door,
    client_options,
    door_of,
    guarded,
    is_gone,
    lines_of,
    name_in,
    reply_bytes,
    told,
)

if TYPE_CHECKING:
    from anthropic.types.messages import MessageBatch

LIMITS = BatchLimits(requests=100_000, size=256_000_000)
_PAGE = 100
_FINAL = ("invalid_request_error", "request_too_large")
_REASONS = {"canceled": "cancelled", "expired": "expired"}


class BatchedAnthropic(AnthropicProvider):
    """A Claude model with its Message Batches."""

    @property
    def batch_limits(self) -> BatchLimits:
        """100,000 requests, 256 MB."""
        return LIMITS

    async def batch_submit(self, batch: str, lines: Sequence[BatchLine]) -> str:
        """Hand all requests in; our id of the batch stays here, for there is no place for it."""
        door = door_of(self)
        return await guarded(door, UPLOAD_SECONDS, partial(_submit, door, lines))

    async def batch_find(self, batch: str, keys: Sequence[str], others: Collection[str]) -> str | None:
        """The batch with exactly these custom ids, made at most a day before our id of it.

        Raises Retryable("unsettled") while one that may be it still runs.
        """
        door = door_of(self)
        candidates = await guarded(door, UPLOAD_SECONDS, partial(_candidates, door, batch, len(keys), others))
        wanted = set(keys)
        running = []
        for name in candidates:
            state = await self.batch_poll(name)
            if state.state == "running":
                running.append(name)
            elif state.state == "ended" and await self._custom_ids(name) == wanted:
                return name
        if running:
            raise Retryable("unsettled", f"{running[0]} may be this batch; that shows when it has ended")
        return None

    async def batch_poll(self, remote_id: str) -> BatchState:
        """How far it is; `lost` where its results are not kept any more (29 days)."""
        door = door_of(self)
        return await guarded(door, CONTROL_SECONDS, partial(_look, door, remote_id))

    async def batch_results(self, remote_id: str) -> AsyncIterator[BatchResult]:
        """The lines of the result file, read from the address that batches are handed in at."""
        door = door_of(self)
        async with _client(door) as client:
            async for line in lines_of(door, partial(_results, client, remote_id)):
                result = read_result(line)
                if result is not None:
                    yield result

    async def batch_cancel(self, remote_id: str) -> None:
        """Ask to stop; what is finished is still delivered and charged."""
        door = door_of(self)

        async def cancel() -> None:
            async with _client(door) as client:
                await client.messages.batches.cancel(remote_id)

        await guarded(door, CONTROL_SECONDS, cancel)

    async def _custom_ids(self, remote_id: str) -> set[str]:
        found: set[str] = set()
        async for result in self.batch_results(remote_id):
            found.add(result.custom_id)
        return found


def read_result(line: bytes) -> BatchResult | None:
    """One line of a result file; None for one that names no request."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("custom_id"), str):
        return None
    custom_id, result = document["custom_id"], document.get("result")
    if not isinstance(result, dict):
        return BatchResult(custom_id, None, "server_error", "there is neither a reply nor an error")
    kind = str(result.get("type") or "")
    if kind == "succeeded" and result.get("message") is not None:
        return BatchResult(custom_id, reply_bytes(result["message"]))
    if kind in _REASONS:
        return BatchResult(custom_id, None, _REASONS[kind], f"the request was {_REASONS[kind]}")
    error = result.get("error")
    while isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    code = str(error.get("type") or "") if isinstance(error, dict) else ""
    final = code in _FINAL
    return BatchResult(
        custom_id, None, "rejected" if final else "server_error", told(error) or code or kind, final
    )


def _client(door: Door) -> Any:
    from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient

    options = client_options()
    return AsyncAnthropic(
        api_key=door.key,
        base_url=door.url,
        max_retries=0,
        timeout=options["timeout"],
        default_headers={"Accept-Encoding": "identity"},
        http_client=DefaultAsyncHttpxClient(**options),
        open_telemetry=False,
    )


async def _submit(door: Door, lines: Sequence[BatchLine]) -> str:
    async with _client(door) as client:
        requests = [{"custom_id": line.custom_id, "params": line.body} for line in lines]
        made = await client.messages.batches.create(requests=requests)
        return name_in(made)


async def _candidates(door: Door, batch: str, size: int, others: Collection[str]) -> list[str]:
    oldest = not_before(batch)
    candidates: list[str] = []
    async with _client(door) as client:
        async for found in client.messages.batches.list(limit=_PAGE):
            if found.created_at < oldest:
                break
            if found.id not in others and _total(found) == size:
                candidates.append(name_in(found))
    return candidates


async def _look(door: Door, remote_id: str) -> BatchState:
    async with _client(door) as client:
        try:
            found: MessageBatch = await client.messages.batches.retrieve(remote_id)
        except Exception as error:
            if is_gone(error):
                return BatchState("lost", detail="there is no such batch any more")
            raise
    total = _total(found)
    done = total - found.request_counts.processing
    if found.processing_status != "ended":
        return BatchState("running", done, total, name_in(found))
    if found.archived_at is not None:
        return BatchState("lost", done, total, "its results are not kept any more")
    return BatchState("ended", done, total)


@asynccontextmanager
async def _results(client: Any, remote_id: str) -> AsyncIterator[Bytes]:
    # The SDK's own method follows the address in `results_url`; the key goes to no address but ours.
    response = await client.get(
        f"/v1/messages/batches/{remote_id}/results",
        cast_to=bytes,
        options={"headers": {"X-Stainless-Raw-Response": "stream"}},
    )
    try:
        yield response
    finally:
        await response.close()


def _total(found: MessageBatch) -> int:
    counts = found.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
