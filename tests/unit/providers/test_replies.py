"""Reading replies: stored bytes alone decide; what is no reply is a bad envelope, never another exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.providers.anthropic import AnthropicProvider
from zephyrctl.providers.base import Ask, Reading, Retryable, Sampling, Usage, clean_text
from zephyrctl.providers.openai import OpenAIProvider
from zephyrctl.providers.sandbox import SandboxProvider
from zephyrctl.records import Message


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> OpenAIProvider:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-123456")
    return OpenAIProvider("gpt-test")


@pytest.fixture
def anthropic(monkeypatch: pytest.MonkeyPatch) -> AnthropicProvider:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test-123456")
    return AnthropicProvider("claude-test")


def raw(value: Any) -> bytes:
    return json.dumps(value).encode()


def chat(content: Any = "hi", finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": finish,
    }
    return {"model": "gpt-4-0613", "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}


@pytest.mark.parametrize(
    ("document", "text", "outcome"),
    [
        (chat(), "hi", "text"),
        (chat("  \n"), "  \n", "empty"),
        (chat(None), "", "empty"),
        (chat("half", "length"), "half", "length"),
        (chat("", "length"), "", "length"),
        (chat(None, "content_filter"), "", "filtered"),
        (chat(None, refusal="I cannot."), "I cannot.", "refusal"),
        (chat([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab", "text"),
        (chat("hi", None), "hi", "text"),
        ({**chat(), "usage": None}, "hi", "text"),
    ],
)
def test_chat_completions(openai: OpenAIProvider, document: dict[str, Any], text: str, outcome: str) -> None:
    reading = openai.read(raw(document))
    assert (reading.text, reading.outcome, reading.served_model) == (text, outcome, "gpt-4-0613")
    assert reading.usage == (Usage(9, 2) if document["usage"] else None)


@pytest.mark.parametrize(
    ("content", "stop", "text", "outcome"),
    [
        ([{"type": "text", "text": "hi"}], "end_turn", "hi", "text"),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}], "end_turn", "hi", "text"),
        ([], "end_turn", "", "empty"),
        ([{"type": "text", "text": "ha"}], "max_tokens", "ha", "length"),
        ([], "refusal", "", "refusal"),
    ],
)
def test_messages(anthropic: AnthropicProvider, content: Any, stop: str, text: str, outcome: str) -> None:
    usage = {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 5}
    reading = anthropic.read(
        raw({"model": "claude-x", "content": content, "stop_reason": stop, "usage": usage})
    )
    assert reading == Reading(text, outcome, stop, "claude-x", Usage(7, 5))  # type: ignore[arg-type]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "usage", "finish_reason", "refusal", "type", "text"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(value=JSON)
def test_any_json_is_a_reading_or_a_bad_envelope(value: Any) -> None:
    readers: list[Callable[[bytes], Reading]] = [
        OpenAIProvider.__new__(OpenAIProvider).read,
        AnthropicProvider.__new__(AnthropicProvider).read,
    ]
    for read in readers:
        try:
            reading = read(raw(value))
        except Retryable:
            continue
        reading.text.encode()


@given(st.binary(max_size=60))
def test_any_bytes(blob: bytes) -> None:
    for reader in (OpenAIProvider, AnthropicProvider):
        with pytest.raises(Retryable, match="bad_envelope"):
            reader.__new__(reader).read(blob)


def test_deep_nesting_and_huge_numbers() -> None:
    for blob in (b"[" * 100_000, b'{"choices": ' + b"9" * 5000 + b"}"):
        with pytest.raises(Retryable, match="bad_envelope"):
            OpenAIProvider.__new__(OpenAIProvider).read(blob)


@given(st.text(st.characters(exclude_categories=())))
def test_clean_text_is_storable_and_leaves_good_text_alone(text: str) -> None:
    cleaned = clean_text(text)
    cleaned.encode("utf-8")
    if all(not 0xD800 <= ord(character) <= 0xDFFF for character in text):
        assert cleaned == text


DIALOGUE = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="a"),
    Message(role="assistant", content="b"),
    Message(role="user", content="c"),
)


def test_bodies(openai: OpenAIProvider, anthropic: AnthropicProvider) -> None:
    ask = Ask(DIALOGUE, Sampling(0.5, 0.9, 77, 3), draw=4, purpose="test")
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert openai.wire(ask) == {
        "model": "gpt-test",
        "messages": [{"role": "system", "content": "Be brief."}, *turns],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 77,
        "seed": 3,
    }
    assert anthropic.wire(ask) == {
        "model": "claude-test",
        "system": "Be brief.",
        "messages": turns,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 77,
    }
    assert "seed" not in openai.wire(Ask(DIALOGUE))
    assert "top_p" not in anthropic.wire(Ask(DIALOGUE))


async def _sandbox(provider: SandboxProvider, ask: Ask) -> Reading:
    return provider.read(await provider.send(provider.wire(ask)))


def test_sandbox_is_repeatable_and_draws_differ() -> None:
    import asyncio

    provider = SandboxProvider("pool-c")
    question = (Message(role="user", content="Sort these words: pear, fig, apple"),)
    texts = []
    for draw in [*range(12), 0]:
        ask = Ask(question, Sampling(temperature=1.0, seed=1), draw=draw)
        texts.append(asyncio.run(_sandbox(provider, ask)))
    assert texts[0] == texts[-1]
    assert len({reading.text for reading in texts}) > 1
    assert texts[0].served_model == "sandbox:pool-c"
    assert texts[0].usage is not None
