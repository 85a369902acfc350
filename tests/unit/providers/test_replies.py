"""Reading replies: stored bytes alone decide; what is no reply is a bad envelope, never another exception."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.money import FREE, Tokens
from zephyrctl.providers.base import Ask, Reading, Retryable, Sampling, Schema, TokenLogprob, clean_text
from zephyrctl.providers.hosted.anthropic import AnthropicProvider
from zephyrctl.providers.hosted.capabilities import MESSAGES, RESPONSES, SERVER, Accepts
from zephyrctl.providers.hosted.endpoints import Place
from zephyrctl.providers.hosted.openai import OpenAIProvider
from zephyrctl.providers.hosted.responses import ResponsesProvider
from zephyrctl.providers.sandbox import SandboxProvider
from zephyrctl.records import Message

HERE = Place(("http://127.0.0.1:9",), "here")
OPENAI = OpenAIProvider("gpt-test", HERE, accepts=SERVER)
RESPONSE = ResponsesProvider("gpt-test", HERE, accepts=RESPONSES)
ANTHROPIC = AnthropicProvider("claude-test", HERE, accepts=MESSAGES)
EVERY = (OPENAI, RESPONSE, ANTHROPIC)


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
def test_chat_completions(document: dict[str, Any], text: str, outcome: str) -> None:
    reading = OPENAI.read(raw(document))
    assert (reading.text, reading.outcome, reading.served_model) == (text, outcome, "gpt-4-0613")
    assert reading.tokens == (Tokens(9, 2) if document["usage"] else None)
    assert reading.reasoning == ""


@pytest.mark.parametrize(
    ("document", "text", "reasoning", "outcome"),
    [
        (chat("<think>hm</think>42"), "42", "hm", "text"),
        (chat("<think>hm", "length"), "", "hm", "reasoning_cut"),
        (chat("<think>hm</think>", "stop"), "", "hm", "empty"),
        (chat("42", reasoning_content="hm"), "42", "hm", "text"),
        (chat("42", reasoning="hm"), "42", "hm", "text"),
        (chat(None, "length", reasoning_content="hm"), "", "hm", "reasoning_cut"),
        (chat("so ha", "length", reasoning_content="hm"), "so ha", "hm", "length"),
        (chat("42", reasoning_content=None), "42", "", "text"),
        (chat("42", reasoning=["odd"]), "42", "", "text"),
    ],
)
def test_reasoning_never_stays_in_the_text(document: Any, text: str, reasoning: str, outcome: str) -> None:
    reading = OPENAI.read(raw(document))
    assert (reading.text, reading.reasoning, reading.outcome) == (text, reasoning, outcome)


def test_hidden_reasoning_is_counted_and_a_cut_in_it_is_told() -> None:
    document = chat("", "length")
    document["usage"] = {
        "prompt_tokens": 100,
        "completion_tokens": 64,
        "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 10},
        "completion_tokens_details": {"reasoning_tokens": 64},
    }
    document["system_fingerprint"] = "fp_1"
    reading = OPENAI.read(raw(document))
    assert reading.tokens == Tokens(100, 64, cached=80, cache_write=10, reasoning=64)
    assert (reading.outcome, reading.fingerprint) == ("reasoning_cut", "fp_1")


def test_logprobs() -> None:
    rows = [
        {
            "token": "4",
            "logprob": -0.5,
            "top_logprobs": [{"token": "4", "logprob": -0.5}, {"token": "5", "logprob": -1}],
        },
        {"token": "2", "logprob": -2},
    ]
    document = chat("42")
    document["choices"][0]["logprobs"] = {"content": rows}
    read = OPENAI.read(raw(document)).logprobs
    assert read == (
        TokenLogprob("4", -0.5, (("4", -0.5), ("5", -1.0))),
        TokenLogprob("2", -2.0),
    )
    assert OPENAI.read(raw(chat())).logprobs is None


def response(*output: Any, status: str = "completed", **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 9, "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 5}}
    usage["input_tokens_details"] = {"cached_tokens": 4}
    return {"model": "gpt-x", "status": status, "output": list(output), "usage": usage, **more}


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "output_text", "text": text, "logprobs": []}]}


THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
CUT = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}


@pytest.mark.parametrize(
    ("document", "text", "reasoning", "outcome"),
    [
        (response(said("42")), "42", "", "text"),
        (response(THOUGHT, said("4"), said("2")), "42", "hm", "text"),
        (response(THOUGHT, **CUT), "", "hm", "reasoning_cut"),
        (response(said("half"), **CUT), "half", "", "length"),
        (response(), "", "", "empty"),
        (
            response(status="incomplete", incomplete_details={"reason": "content_filter"}),
            "",
            "",
            "filtered",
        ),
        (
            response({"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}),
            "No.",
            "",
            "refusal",
        ),
    ],
)
def test_responses(document: dict[str, Any], text: str, reasoning: str, outcome: str) -> None:
    reading = RESPONSE.read(raw(document))
    assert (reading.text, reading.reasoning, reading.outcome) == (text, reasoning, outcome)
    assert reading.tokens == Tokens(9, 7, cached=4, reasoning=5)
    assert reading.served_model == "gpt-x"


def test_a_response_that_failed_is_asked_again() -> None:
    for status in ("failed", "cancelled"):
        with pytest.raises(Retryable, match="server_error"):
            RESPONSE.read(raw(response(status=status)))


def test_logprobs_of_responses() -> None:
    item = said("42")
    item["content"][0]["logprobs"] = [{"token": "42", "logprob": -0.1, "top_logprobs": []}]
    assert RESPONSE.read(raw(response(item))).logprobs == (TokenLogprob("42", -0.1),)
    assert RESPONSE.read(raw(response(said("42")))).logprobs is None


@pytest.mark.parametrize(
    ("content", "stop", "text", "outcome"),
    [
        ([{"type": "text", "text": "hi"}], "end_turn", "hi", "text"),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}], "end_turn", "hi", "text"),
        ([], "end_turn", "", "empty"),
        ([{"type": "text", "text": "ha"}], "max_tokens", "ha", "length"),
        ([{"type": "thinking", "thinking": "hm"}], "max_tokens", "", "reasoning_cut"),
        ([{"type": "redacted_thinking", "data": "x"}], "max_tokens", "", "reasoning_cut"),
        ([], "model_context_window_exceeded", "", "length"),
        ([], "refusal", "", "refusal"),
    ],
)
def test_messages(content: Any, stop: str, text: str, outcome: str) -> None:
    usage = {
        "input_tokens": 3,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 2,
        "output_tokens": 5,
    }
    reading = ANTHROPIC.read(
        raw({"model": "claude-x", "content": content, "stop_reason": stop, "usage": usage})
    )
    thought = "hm" if any("thinking" in block for block in content) else ""
    tokens = Tokens(9, 5, cached=4, cache_write=2)
    assert reading == Reading(text, outcome, stop, "claude-x", tokens, reasoning=thought)  # type: ignore[arg-type]


def test_hidden_thinking_is_counted() -> None:
    usage = {"input_tokens": 3, "output_tokens": 5, "output_tokens_details": {"thinking_tokens": 5}}
    reading = ANTHROPIC.read(raw({"content": [], "stop_reason": "max_tokens", "usage": usage}))
    assert reading.tokens == Tokens(3, 5, reasoning=5)
    assert reading.outcome == "reasoning_cut"


NAMES = [
    *(
        "choices",
        "message",
        "content",
        "usage",
        "finish_reason",
        "refusal",
        "type",
        "text",
        "output",
        "status",
    ),
    *("logprobs", "reasoning", "summary", "thinking", "incomplete_details", "token", "top_logprobs"),
    *("prompt_tokens_details", "input_tokens_details"),
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["text", "message", "<think>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=14,
)


@given(value=JSON)
def test_any_json_is_a_reading_or_a_bad_envelope(value: Any) -> None:
    readers: list[Callable[[bytes], Reading]] = [provider.read for provider in EVERY]
    for read in readers:
        try:
            reading = read(raw(value))
        except Retryable:
            continue
        (reading.text + reading.reasoning).encode()


@given(st.binary(max_size=60))
def test_any_bytes(blob: bytes) -> None:
    for provider in EVERY:
        with pytest.raises(Retryable, match="bad_envelope") as caught:
            provider.read(blob)
        assert caught.value.maybe_billed


def test_deep_nesting_and_huge_numbers() -> None:
    for blob in (b"[" * 100_000, b'{"choices": ' + b"9" * 5000 + b"}"):
        with pytest.raises(Retryable, match="bad_envelope"):
            OPENAI.read(blob)


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
TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
VERDICT = Schema("verdict", {"type": "object"})


def test_bodies_of_chat_completions() -> None:
    ask = Ask(DIALOGUE, Sampling(0.5, 0.9, 77, 3, ("END",), 2, "low"), draw=4, purpose="test", schema=VERDICT)
    assert OPENAI.wire(ask) == {
        "model": "gpt-test",
        "messages": [SYSTEM, *TURNS],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 77,
        "seed": 3,
        "stop": ["END"],
        "logprobs": True,
        "top_logprobs": 2,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "schema": {"type": "object"}, "strict": True},
        },
    }
    plain = OPENAI.wire(Ask(DIALOGUE, Sampling(logprobs=0)))
    assert plain["logprobs"] is True
    assert not {"seed", "stop", "top_logprobs", "response_format", "reasoning_effort"} & set(plain)


@pytest.mark.parametrize("role", ["developer", "none"])
def test_the_role_of_instructions(role: Any) -> None:
    provider = OpenAIProvider("m", HERE, accepts=Accepts(system=role))
    sent = provider.wire(Ask(DIALOGUE))["messages"]
    if role == "developer":
        assert sent == [{"role": "developer", "content": "Be brief."}, *TURNS]
    else:
        assert sent == [{"role": "user", "content": "Be brief.\n\na"}, *TURNS[1:]]


def test_instructions_alone_become_the_question_where_there_is_no_such_role() -> None:
    provider = OpenAIProvider("m", HERE, accepts=Accepts(system="none"))
    assert provider.wire(Ask(DIALOGUE[:1]))["messages"] == [{"role": "user", "content": "Be brief."}]


def test_bodies_of_responses() -> None:
    ask = Ask(DIALOGUE, Sampling(0.5, 0.9, 77, None, (), 2, "low"), schema=VERDICT)
    assert RESPONSE.wire(ask) == {
        "model": "gpt-test",
        "input": [SYSTEM, *TURNS],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 77,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "reasoning": {"effort": "low"},
        "store": False,
        "text": {
            "format": {"name": "verdict", "schema": {"type": "object"}, "type": "json_schema", "strict": True}
        },
    }


def test_bodies_of_messages() -> None:
    ask = Ask(DIALOGUE, Sampling(0.5, 0.9, 77, None, ("END",), None, "low"), schema=VERDICT)
    assert ANTHROPIC.wire(ask) == {
        "model": "claude-test",
        "system": "Be brief.",
        "messages": TURNS,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 77,
        "stop_sequences": ["END"],
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    }
    assert "output_config" not in ANTHROPIC.wire(Ask(DIALOGUE))


def test_a_lone_surrogate_in_a_prompt_is_sent_as_the_replacement_character() -> None:
    broken = Message.model_construct(role="user", content="half \ud800 pair")
    for provider in EVERY:
        body = provider.wire(Ask((broken,)))
        assert json.dumps(body, ensure_ascii=False).encode().decode().count("half \ufffd pair") == 1
        assert provider.bound(body)[0] > 0


async def _sandbox(provider: SandboxProvider, ask: Ask) -> Reading:
    return provider.read((await provider.send(provider.wire(ask))).body)


def test_sandbox_is_repeatable_and_draws_differ() -> None:
    provider = SandboxProvider("pool-c")
    question = (Message(role="user", content="Sort these words: pear, fig, apple"),)
    texts = []
    for draw in [*range(12), 0]:
        ask = Ask(question, Sampling(temperature=1.0, seed=1), draw=draw)
        texts.append(asyncio.run(_sandbox(provider, ask)))
    assert texts[0] == texts[-1]
    assert len({reading.text for reading in texts}) > 1
    assert texts[0].served_model == "sandbox:pool-c"
    assert texts[0].tokens is not None
    assert (provider.price, provider.dropped) == (FREE, ())
    assert provider.price.worst(*provider.bound(provider.wire(Ask(question)))) == 0
