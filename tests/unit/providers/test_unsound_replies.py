"""Replies that are JSON of the right form and yet not sound: strings, numbers and ends that must do no harm."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_server import RawServer, http

from zephyrctl.money import Tokens
from zephyrctl.providers.base import Reading, Received, Rejected, Retryable, count
from zephyrctl.providers.hosted.anthropic import AnthropicProvider
from zephyrctl.providers.hosted.endpoints import Place
from zephyrctl.providers.hosted.openai import OpenAIProvider
from zephyrctl.providers.hosted.responses import ResponsesProvider

HERE = Place(("http://127.0.0.1:9",), "here")
CHAT = OpenAIProvider("m", HERE)
RESPONSE = ResponsesProvider("m", HERE)
MESSAGE = AnthropicProvider("m", HERE)
HALF = "a\ud800"
CLEAN = "a\ufffd"
MOST = 2**53 - 1


def chat(text: str | None = "hi", finish: Any = "stop", **more: Any) -> dict[str, Any]:
    choice = {"message": {"content": text, **more.pop("message", {})}, "finish_reason": finish}
    return {"model": "m", "choices": [{**choice, **more.pop("choice", {})}], **more}


def response(text: str | None = "hi", status: Any = "completed", **more: Any) -> dict[str, Any]:
    items = [] if text is None else [{"type": "message", "content": [{"type": "output_text", "text": text}]}]
    return {"model": "m", "status": status, "output": items + more.pop("items", []), **more}


def message(text: str | None = "hi", stop: Any = "end_turn", **more: Any) -> dict[str, Any]:
    blocks = [] if text is None else [{"type": "text", "text": text}]
    return {"model": "m", "stop_reason": stop, "content": blocks + more.pop("blocks", []), **more}


READ: list[tuple[Any, Callable[..., dict[str, Any]]]] = [
    (CHAT, chat),
    (RESPONSE, response),
    (MESSAGE, message),
]


def read(document: Any) -> Reading:
    """What the adapter says whose form the document has."""
    form = next(name for name in ("choices", "output", "content") if name in document)
    provider: Any = {"choices": CHAT, "output": RESPONSE, "content": MESSAGE}[form]
    reading: Reading = provider.read(json.dumps(document).encode())
    return reading


def strings(reading: Reading) -> list[str]:
    """Every string of a reading."""
    tokens = reading.logprobs or ()
    spelled = [one.token for one in tokens] + [token for one in tokens for token, _ in one.top]
    whole = [reading.text, reading.finish_reason, reading.served_model, reading.reasoning]
    return [*whole, reading.fingerprint, *spelled]


def test_half_a_surrogate_pair_is_mended_wherever_it_stands() -> None:
    row = {"token": HALF, "logprob": -1, "top_logprobs": [{"token": HALF, "logprob": -1}]}
    made = chat(
        HALF,
        HALF,
        model=HALF,
        system_fingerprint=HALF,
        message={"reasoning": HALF},
        choice={"logprobs": {"content": [row]}},
    )
    assert strings(read({**made, "model": HALF})) == [CLEAN] * 7
    part = {"type": "output_text", "text": HALF, "logprobs": [row]}
    thought = {"type": "reasoning", "summary": [{"text": HALF}, {"text": HALF}]}
    items = [thought, {"type": "message", "content": [part]}]
    said = strings(read({**response(None, HALF, items=items), "model": HALF}))
    assert said == [CLEAN, CLEAN, CLEAN, f"{CLEAN}\n\n{CLEAN}", "", CLEAN, CLEAN]
    blocks = [{"type": "thinking", "thinking": HALF}]
    said = strings(read({**message(HALF, HALF, blocks=blocks), "model": HALF}))
    assert said == [CLEAN, CLEAN, CLEAN, CLEAN, ""]


def test_a_pair_that_is_split_over_two_parts_is_one_character() -> None:
    parts = [{"type": "text", "text": "\ud83d"}, {"type": "text", "text": "\ude00"}]
    assert read(message(None, blocks=parts)).text == "\U0001f600"


def test_names_are_short_and_only_strings() -> None:
    made = {**chat(finish="f" * 300), "model": "m" * 300, "system_fingerprint": "p" * 300}
    said = read(made)
    assert (said.served_model, said.finish_reason, said.fingerprint) == ("m" * 200, "f" * 200, "p" * 200)
    for odd in (5, True, ["x"], {"x": 1}):
        assert read({**chat(), "model": odd, "system_fingerprint": odd}).served_model == ""
        assert read({**response(), "model": odd}).served_model == ""
        assert read({**message(), "model": odd}).served_model == ""
        assert read(chat([{"type": "text", "text": odd}, {"text": "hi"}])).text == "hi"  # type: ignore[arg-type]


def _raw_id(status: str, name: bytes) -> bytes:
    made = http(b"{}", status, X_Name="RAW")
    return made.replace(b"X-Name: RAW", name + b": \xff\xfe" + b"r" * 300)


@pytest.mark.parametrize("name", [b"x-request-id", b"request-id"])
def test_a_request_id_that_is_no_utf8_can_be_stored(name: bytes) -> None:
    async def ask(url: str) -> Received:
        provider = OpenAIProvider("m", Place((url,), "here"))
        try:
            return await provider.send({"model": "m", "messages": []})
        finally:
            await provider.aclose()

    wanted = "\ufffd\ufffd" + "r" * 198
    with RawServer(_raw_id("200 OK", name)) as server:
        assert asyncio.run(ask(server.url)).request_id == wanted
    for status in ("500 Oh", "400 No"):
        with RawServer(_raw_id(status, name)) as server, pytest.raises((Retryable, Rejected)) as caught:
            asyncio.run(ask(server.url))
        assert isinstance(caught.value, Retryable | Rejected)
        assert caught.value.request_id == wanted


COUNT = st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(-(2**70), 2**70)


def real(value: object) -> bool:
    """Whether a value is a count."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST


@given(COUNT, COUNT, COUNT)
def test_tokens_are_known_where_input_and_output_were_counted(sent: Any, made: Any, cached: Any) -> None:
    usage = {
        "prompt_tokens": sent,
        "completion_tokens": made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    part = cached if real(cached) else 0
    known = real(sent) and real(made)
    assert count(cached) == part
    assert read(chat(usage=usage)).tokens == (Tokens(sent, made, cached=part) if known else None)
    usage = {"input_tokens": sent, "output_tokens": made, "input_tokens_details": {"cached_tokens": cached}}
    assert read(response(usage=usage)).tokens == (Tokens(sent, made, cached=part) if known else None)
    usage = {"input_tokens": sent, "output_tokens": made, "cache_read_input_tokens": cached}
    assert read(message(usage=usage)).tokens == (Tokens(sent + part, made, cached=part) if known else None)


@pytest.mark.parametrize("usage", [{}, None, [], "9", {"input_tokens": 3}, {"completion_tokens": 3}])
def test_half_a_count_is_none(usage: Any) -> None:
    for _, make in READ:
        assert read(make(usage=usage)).tokens is None


def test_the_largest_count() -> None:
    for most, tokens in ((MOST, Tokens(MOST, 1)), (MOST + 1, None)):
        assert read(chat(usage={"prompt_tokens": most, "completion_tokens": 1})).tokens == tokens


NO_NUMBER = [10**400, -(10**400), math.nan, math.inf, -math.inf, "x", None, True, [], "-0.5"]


@pytest.mark.parametrize("value", NO_NUMBER)
def test_a_log_probability_that_is_no_number_leaves_the_list_out(value: Any) -> None:
    good = {"token": "a", "logprob": -0.5}
    bad = {"token": "b", "logprob": value}
    for rows in ([good, bad], [{**good, "top_logprobs": [good, bad]}], [good, "odd"], [{"token": "b"}]):
        said = read(chat(choice={"logprobs": {"content": rows}}))
        assert (said.text, said.logprobs) == ("hi", None)
        part = {"type": "output_text", "text": "hi", "logprobs": rows}
        said = read(response(None, items=[{"type": "message", "content": [part]}]))
        assert (said.text, said.logprobs) == ("hi", None)


def fault(document: Any) -> Retryable:
    """What reading a document raises."""
    with pytest.raises(Retryable) as caught:
        read(document)
    assert caught.value.maybe_billed
    return caught.value


@pytest.mark.parametrize("error", [{"message": "it \ud800 broke", "code": 502}, "it \ud800 broke"])
def test_a_reply_that_tells_of_an_error_is_no_answer(error: Any) -> None:
    documents = [make(error=error) for _, make in READ]
    for document in [*documents, chat(choice={"error": error}), chat(None, None, error=error)]:
        made = fault(document)
        assert (made.reason, made.detail) == ("server_error", "the reply tells of an error: it \ufffd broke")
    assert fault(chat(error={"code": 502})).detail == "the reply tells of an error"
    for _, make in READ:
        assert read(make(error=None)).outcome == "text"


def test_an_error_without_any_answer_is_told_as_such() -> None:
    document = json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}})
    for provider, _ in READ:
        with pytest.raises(Retryable, match="server_error: the reply tells of an error: busy"):
            provider.read(document.encode())


BROKEN_OFF = ["error", "abort", "failed", "in_progress", "cancelled", "queued"]


@pytest.mark.parametrize("reason", [*BROKEN_OFF, "insufficient_system_resource"])
@pytest.mark.parametrize("text", ["half an ans", None])
def test_an_answer_that_was_broken_off_is_asked_again(reason: str, text: str | None) -> None:
    for _, make in READ:
        assert fault(make(text, reason)).reason == "server_error"


def test_a_call_of_a_tool_is_no_answer() -> None:
    documents = [chat("let me", "tool_calls"), chat("let me", "function_call"), message("let me", "tool_use")]
    for kind in ("function_call", "custom_tool_call"):
        documents.append(response("let me", items=[{"type": kind, "name": "search"}]))
    for document in documents:
        assert fault(document).reason == "bad_envelope"


CUT_WITHOUT_A_REASON = [
    (response, "incomplete"),
    (response, None),
    (response, ""),
    (response, {"odd": 1}),
    (message, "pause_turn"),
    (message, None),
    (message, ""),
]


@pytest.mark.parametrize(("make", "reason"), CUT_WITHOUT_A_REASON)
def test_an_answer_that_does_not_say_that_it_is_whole_is_cut(make: Any, reason: Any) -> None:
    assert read(make("half an ans", reason)).outcome == "length"
    for none in (None, " \n"):
        assert fault(make(none, reason)).reason == "bad_envelope"


def test_a_reason_of_a_later_day_is_a_cut_too() -> None:
    details = {"reason": "steered"}
    assert read(response("half", "incomplete", incomplete_details=details)).outcome == "length"
    assert fault(response(None, "incomplete", incomplete_details=details)).reason == "bad_envelope"


def test_servers_that_give_no_finish_reason_are_believed_where_there_is_text() -> None:
    assert read(chat("hi", None)).outcome == "text"
    assert read(chat(None, None, message={"refusal": "No."})).outcome == "refusal"
    assert fault(chat(None, None)).reason == "bad_envelope"
    assert read(chat(None, "stop")).outcome == "empty"


def test_another_name_of_a_cut() -> None:
    assert read(chat("half", "model_length")).outcome == "length"
