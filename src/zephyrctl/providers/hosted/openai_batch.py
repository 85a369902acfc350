"""OpenAI's Batch API: a file of requests in, a file of replies and one of errors out, within a day, at half price.

`vllm run-batch` reads and writes the same lines.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from zephyrctl.providers.base import BatchLimits, BatchLine, BatchResult, BatchState
from zephyrctl.providers.calling.bulk_plan import not_before
from zephyrctl.providers.hosted.batch_wire import (
    CONTROL_SECONDS,
    UPLOAD_SECONDS,
    Door,
    client_options,
    door_of,
    guarded,
    is_gone,
    lines_of,
    name_in,
    refused,
    reply_bytes,
    told,
)
from zephyrctl.providers.hosted.openai import OpenAIProvider
from zephyrctl.providers.hosted.provider import HostedProvider
from zephyrctl.providers.hosted.responses import ResponsesProvider

if TYPE_CHECKING:
    from openai.types import Batch

LIMITS = BatchLimits(requests=50_000, size=200_000_000)
_OURS = "zephyrctl"
_PAGE = 100
_ENDED = ("completed", "expired", "cancelled")
_NO_ROOM = "token_limit_exceeded"


class OpenAIBatches(HostedProvider):
    """The batches of one model. A batch carries our id as metadata, so it is found again after any crash."""

    @property
    def batch_limits(self) -> BatchLimits:
        """50,000 requests, 200 MB."""
        return LIMITS

    async def batch_submit(self, batch: str, lines: Sequence[BatchLine]) -> str:
        """Hand the file in, then the batch. A file without a batch, after a crash between the two, costs nothing."""
        door = door_of(self)
        url = f"/v1{self.endpoint}"
        with tempfile.TemporaryFile() as file:
            await asyncio.to_thread(_write, file, url, lines)
            return await guarded(door, UPLOAD_SECONDS, partial(_submit, door, batch, url, file))

    async def batch_find(self, batch: str, keys: Sequence[str], others: Collection[str]) -> str | None:
        """The batch whose metadata holds our id; the list is read back to a day before that id was made."""
        door = door_of(self)
        return await guarded(door, UPLOAD_SECONDS, partial(_find, door, batch))

    async def batch_poll(self, remote_id: str) -> BatchState:
        """How far it is; `lost` where OpenAI does not know it any more."""
        door = door_of(self)
        return await guarded(door, CONTROL_SECONDS, partial(_look, door, remote_id))

    async def batch_results(self, remote_id: str) -> AsyncIterator[BatchResult]:
        """The lines of the output file, then those of the error file."""
        door = door_of(self)
        found = await guarded(door, CONTROL_SECONDS, partial(_retrieve, door, remote_id))
        names = (found.output_file_id, found.error_file_id) if found else ()
        async with _client(door) as client:
            for name in filter(None, names):
                content = partial(client.files.with_streaming_response.content, name)
                async for line in lines_of(door, content):
                    result = read_result(line)
                    if result is not None:
                        yield result

    async def batch_cancel(self, remote_id: str) -> None:
        """Ask to stop; what is finished is still delivered and charged."""
        door = door_of(self)

        async def cancel() -> None:
            async with _client(door) as client:
                await client.batches.cancel(remote_id)

        await guarded(door, CONTROL_SECONDS, cancel)


class BatchedOpenAI(OpenAIBatches, OpenAIProvider):
    """A chat model at OpenAI's own address, or wherever OPENAI_BASE_URL points."""


class BatchedResponses(OpenAIBatches, ResponsesProvider):
    """A model that is asked through Responses there."""


def request_line(custom_id: str, url: str, body: Mapping[str, Any]) -> bytes:
    """One line of a request file; `url` is the path of the API, such as /v1/chat/completions."""
    line = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"


def read_result(line: bytes) -> BatchResult | None:
    """One line of an output or error file; None for one that names no request."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("custom_id"), str):
        return None
    custom_id, response, error = document["custom_id"], document.get("response"), document.get("error")
    if isinstance(response, dict):
        status, body = response.get("status_code"), response.get("body")
        # an error stands in the body at OpenAI, beside the response at vLLM
        if isinstance(status, int) and status != 200:
            return refused(custom_id, status, error or body)
        if body is not None and not error:
            return BatchResult(custom_id, reply_bytes(body))
    code = str(error.get("code") or "") if isinstance(error, dict) else ""
    reason = {"batch_expired": "expired", "batch_cancelled": "cancelled"}.get(code, "server_error")
    return BatchResult(
        custom_id, None, reason, told(error) or code or "there is neither a reply nor an error"
    )


def _client(door: Door) -> Any:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    options = client_options()
    return AsyncOpenAI(
        api_key=door.key,
        base_url=door.url,
        max_retries=0,
        timeout=options["timeout"],
        default_headers={"Accept-Encoding": "identity"},
        http_client=DefaultAsyncHttpxClient(**options),
    )


def _write(file: IO[bytes], url: str, lines: Sequence[BatchLine]) -> None:
    file.writelines(request_line(line.custom_id, url, line.body) for line in lines)
    file.seek(0)


async def _submit(door: Door, batch: str, url: str, file: IO[bytes]) -> str:
    async with _client(door) as client:
        uploaded = await client.files.create(file=(f"{batch}.jsonl", file), purpose="batch")
        made = await client.batches.create(
            input_file_id=name_in(uploaded), endpoint=url, completion_window="24h", metadata={_OURS: batch}
        )
        return name_in(made)


async def _find(door: Door, batch: str) -> str | None:
    oldest = not_before(batch).timestamp()
    async with _client(door) as client:
        async for found in client.batches.list(limit=_PAGE):
            if (found.metadata or {}).get(_OURS) == batch:
                return name_in(found)
            if found.created_at < oldest:
                break
    return None


async def _retrieve(door: Door, remote_id: str) -> Batch | None:
    async with _client(door) as client:
        try:
            found: Batch = await client.batches.retrieve(remote_id)
        except Exception as error:
            if is_gone(error):
                return None
            raise
    name_in(found)
    return found


async def _look(door: Door, remote_id: str) -> BatchState:
    found = await _retrieve(door, remote_id)
    if found is None:
        return BatchState("lost", detail="there is no such batch any more")
    counts = found.request_counts
    done, total = (counts.completed + counts.failed, counts.total) if counts else (0, 0)
    if found.status in _ENDED:
        return BatchState("ended", done, total, found.status)
    if found.status != "failed":
        return BatchState("running", done, total, found.status)
    errors = (found.errors.data if found.errors else None) or []
    detail = "; ".join(told({"message": error.message}) for error in errors[:3])
    return BatchState("full" if any(e.code == _NO_ROOM for e in errors) else "refused", done, total, detail)
