"""The same question through the vendor's SDK and through our transport: the same bytes, and the headers that matter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from anthropic._constants import ANTHROPIC_API_VERSION
from raw_server import RawServer, Seen, http

from zephyrctl.providers.base import Ask, Sampling, Schema
from zephyrctl.providers.hosted.anthropic import AnthropicProvider
from zephyrctl.providers.hosted.capabilities import MESSAGES, RESPONSES, SERVER, Accepts
from zephyrctl.providers.hosted.endpoints import Place
from zephyrctl.providers.hosted.openai import OpenAIProvider
from zephyrctl.providers.hosted.provider import HostedProvider
from zephyrctl.providers.hosted.responses import ResponsesProvider
from zephyrctl.records import Message

KEY = "sk-parity-0123456789"
DIALOGUE = (
    Message(role="system", content='Be brief. "quoted" \\ é'),
    Message(role="user", content="Ünïcode, 漢字, \u2028, \x00, \t and 🎓"),
    Message(role="assistant", content=""),
    Message(role="user", content="Add 2 and 3."),
)
SCHEMA = Schema(
    "verdict", {"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}, "required": ["b"]}
)
CHAT = {
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "5"}}],
    "id": "c",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "5"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
RESPONSE = {
    "id": "r",
    "object": "response",
    "created_at": 0,
    "model": "m",
    "status": "completed",
    "output": [],
}


def chat(url: str, body: dict[str, Any]) -> Awaitable[Any]:
    client = openai.AsyncOpenAI(api_key=KEY, base_url=url, max_retries=0)
    return client.chat.completions.create(**body)


def responses(url: str, body: dict[str, Any]) -> Awaitable[Any]:
    client = openai.AsyncOpenAI(api_key=KEY, base_url=url, max_retries=0)
    return client.responses.create(**body)


def messages(url: str, body: dict[str, Any]) -> Awaitable[Any]:
    client = anthropic.AsyncAnthropic(api_key=KEY, base_url=url, max_retries=0)
    # its signature no longer names the sampling settings, which older models take
    extra = {name: body[name] for name in ("temperature", "top_p") if name in body}
    return client.messages.create(**{n: v for n, v in body.items() if n not in extra}, extra_body=extra)


CASES = [
    pytest.param(OpenAIProvider, SERVER, chat, CHAT, id="chat"),
    pytest.param(
        OpenAIProvider,
        Accepts(limit="max_completion_tokens", system="developer"),
        chat,
        CHAT,
        id="chat of reasoning models",
    ),
    pytest.param(ResponsesProvider, RESPONSES, responses, RESPONSE, id="responses"),
    pytest.param(AnthropicProvider, MESSAGES, messages, MESSAGE, id="messages"),
]
QUESTIONS = [
    Ask(DIALOGUE, Sampling(0.7, 0.9, 77, 3, ("END", "\n\n"), 2, "low"), draw=4, schema=SCHEMA),
    Ask(DIALOGUE[-1:], Sampling(temperature=1, top_p=1.0, max_tokens=5)),
]


@pytest.fixture
def server() -> Iterator[Callable[[Any], RawServer]]:
    opened: list[RawServer] = []

    def make(reply: Any) -> RawServer:
        opened.append(
            RawServer(http(json.dumps(reply).encode(), Content_Type="application/json")).__enter__()
        )
        return opened[-1]

    yield make
    for one in opened:
        one.__exit__(None, None, None)


def lowered(seen: Seen, *names: str) -> dict[str, str | None]:
    return {name: seen.headers.get(name) for name in names}


@pytest.mark.parametrize("ask", QUESTIONS, ids=["every setting", "defaults"])
@pytest.mark.parametrize(("cls", "accepts", "through_sdk", "reply"), CASES)
def test_both_send_the_same(
    cls: type[HostedProvider],
    accepts: Accepts,
    through_sdk: Callable[[str, dict[str, Any]], Awaitable[Any]],
    reply: Any,
    ask: Ask,
    server: Callable[[Any], RawServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from zephyrctl.providers.hosted.fitting import Fit

    monkeypatch.setenv("PARITY_KEY", KEY)
    remote = server(reply)
    drop = Fit(frozenset({"seed", "stop", "logprobs"}))
    ours = cls("m", Place((remote.url,), "here", "PARITY_KEY"), accepts=accepts, fit=drop)
    body = ours.wire(ask)

    async def both() -> None:
        ours.read((await ours.send(body)).body)
        await ours.aclose()
        await through_sdk(remote.url, body)

    asyncio.run(both())
    mine, theirs = remote.seen
    assert mine.body == theirs.body
    assert mine.path == theirs.path
    names = ("authorization", "x-api-key", "anthropic-version", "content-type", "accept", "accept-encoding")
    assert lowered(mine, *names) == lowered(theirs, *names)
    assert mine.headers["authorization"] == f"Bearer {KEY}"
    if cls is AnthropicProvider:
        assert mine.headers["anthropic-version"] == ANTHROPIC_API_VERSION
