"""Every mode of the loopback teacher: what arrives, in each API's form, and whether it is billed."""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import anthropic
import openai
import pytest
from wire_clients import ask, eventually, question

from zephyrctl.testing.answers import REASONING, REFUSAL, answer_text, chances, filled, tokens_of
from zephyrctl.testing.replies import BILLED, MODES, check_mode
from zephyrctl.testing.teacher import LoopbackTeacher

TEXT = answer_text(question())


@pytest.fixture
def teacher() -> Iterator[LoopbackTeacher]:
    with LoopbackTeacher() as made:
        yield made


def chat(teacher: LoopbackTeacher, **body: Any) -> Any:
    with openai.OpenAI(api_key="sk-test-1234567", base_url=teacher.openai_url, max_retries=0) as client:
        return client.chat.completions.create(**question(**body))


def respond(teacher: LoopbackTeacher, **body: Any) -> Any:
    with openai.OpenAI(api_key="sk-test-1234567", base_url=teacher.openai_url, max_retries=0) as client:
        return client.responses.create(model="gpt-test", input="Add 2 and 3.", max_output_tokens=64, **body)


def message(teacher: LoopbackTeacher, **body: Any) -> Any:
    with anthropic.Anthropic(api_key="sk-ant-1234567", base_url=teacher.url, max_retries=0) as client:
        return client.messages.create(**question(**body))


def test_the_three_apis_give_one_answer(teacher: LoopbackTeacher) -> None:
    completion, response, said = chat(teacher), respond(teacher), message(teacher)
    assert completion.choices[0].message.content == response.output_text == said.content[0].text == TEXT
    assert completion.choices[0].finish_reason == "stop"
    assert response.status == "completed"
    assert said.stop_reason == "end_turn"
    assert completion.model == response.model == said.model == "gpt-test-2026"
    words = len(TEXT.split())
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (4, words)
    assert (response.usage.input_tokens, response.usage.output_tokens) == (4, words)
    assert (said.usage.input_tokens, said.usage.output_tokens) == (4, words)
    assert teacher.billed_calls == teacher.requests == 3


def test_a_system_prompt_is_read_in_every_form(teacher: LoopbackTeacher) -> None:
    system = {"role": "system", "content": "Be short, please."}
    bodies = [
        question(messages=[system, {"role": "user", "content": "Add 2 and 3."}]),
        {"model": "m", "instructions": "Be short, please.", "input": "Add 2 and 3."},
        question(system=[{"type": "text", "text": "Be short, please."}]),
    ]
    tokens = [
        ask(teacher, bodies[0]).document["usage"]["prompt_tokens"],
        ask(teacher, bodies[1], api="responses").document["usage"]["input_tokens"],
        ask(teacher, bodies[2], api="anthropic").document["usage"]["input_tokens"],
    ]
    assert tokens == [7, 7, 7]
    assert len({answer_text(body) for body in bodies}) == 1


def test_several_choices_and_a_limit_on_tokens(teacher: LoopbackTeacher) -> None:
    completion = chat(teacher, n=3, temperature=1.0)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert teacher.billed_calls == 1
    teacher.answer = lambda body: "one two three four"
    cut = chat(teacher, max_tokens=2)
    assert cut.choices[0].message.content == "one two"
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 2


def test_log_probabilities_come_when_asked(teacher: LoopbackTeacher) -> None:
    assert chat(teacher).choices[0].logprobs is None
    rows = chat(teacher, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert "".join(row.token for row in rows) == TEXT
    assert all(row.top_logprobs[0].token == row.token for row in rows)
    assert all(len({top.token for top in row.top_logprobs}) == 3 for row in rows)
    assert all(row.logprob <= 0 for row in rows)
    bare = chat(teacher, logprobs=True).choices[0].logprobs.content
    assert [row.top_logprobs for row in bare] == [[]] * len(rows)
    asked = respond(teacher, include=["message.output_text.logprobs"], top_logprobs=2)
    assert [row.token for row in asked.output[0].content[0].logprobs] == [row.token for row in rows]
    teacher.script = "no_logprobs"
    assert chat(teacher, logprobs=True).choices[0].logprobs is None
    none = respond(teacher, include=["message.output_text.logprobs"], top_logprobs=2)
    assert not none.output[0].content[0].logprobs


def test_an_answer_follows_a_schema(teacher: LoopbackTeacher) -> None:
    schema = {
        "type": "object",
        "properties": {
            "why": {"type": "string"},
            "score": {"type": "integer", "minimum": 1},
            "best": {"enum": ["A"]},
        },
    }
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    expected = {"why": TEXT, "score": 1, "best": "A"}
    assert json.loads(chat(teacher, response_format=form).choices[0].message.content) == expected
    flat = {"type": "json_schema", "name": "verdict", "schema": schema}
    assert json.loads(respond(teacher, text={"format": flat}).output_text) == expected
    said = ask(teacher, question(output_config={"format": flat}), api="anthropic").document
    assert json.loads(said["content"][0]["text"]) == expected
    assert filled({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, "x") == [True, True]


OUTCOMES = {
    "empty": ("stop", "completed", "end_turn"),
    "length": ("length", "incomplete", "max_tokens"),
    "refusal": ("stop", "completed", "refusal"),
    "filtered": ("content_filter", "incomplete", "refusal"),
    "reasoning": ("length", "incomplete", "max_tokens"),
    "reasoned": ("stop", "completed", "end_turn"),
    "think": ("stop", "completed", "end_turn"),
    "think_cut": ("length", "incomplete", "max_tokens"),
}


@pytest.mark.parametrize("mode", OUTCOMES)
def test_outcomes_have_each_vendors_finish_reason(teacher: LoopbackTeacher, mode: str) -> None:
    teacher.script = mode
    completion, response, said = chat(teacher), respond(teacher), message(teacher)
    assert (completion.choices[0].finish_reason, response.status, said.stop_reason) == OUTCOMES[mode]
    assert teacher.billed_calls == 3


def test_a_refusal_stands_in_its_own_field(teacher: LoopbackTeacher) -> None:
    teacher.script = "refusal"
    first = chat(teacher).choices[0].message
    assert (first.content, first.refusal) == (None, REFUSAL)
    assert respond(teacher).output[0].content[0].refusal == REFUSAL
    assert message(teacher).content == []
    teacher.script = "filtered"
    filtered = respond(teacher)
    assert (filtered.output, filtered.incomplete_details.reason) == ([], "content_filter")


@pytest.mark.parametrize(("form", "shown"), [("", REASONING), (":hidden", "")])
def test_reasoning_is_beside_the_answer_and_counted(teacher: LoopbackTeacher, form: str, shown: str) -> None:
    hidden = len(REASONING.split())
    for mode, text in ((f"reasoning{form}", ""), (f"reasoned{form}", TEXT)):
        teacher.script = mode
        completion, response, said = chat(teacher), respond(teacher), message(teacher)
        first = completion.choices[0].message
        assert (first.content, getattr(first, "reasoning_content", "")) == (text, shown)
        assert completion.usage.completion_tokens_details.reasoning_tokens == hidden
        assert completion.usage.completion_tokens == hidden + len(text.split())
        assert response.output_text == text
        assert response.output[0].type == "reasoning"
        assert response.usage.output_tokens_details.reasoning_tokens == hidden
        assert said.content[0].thinking == shown
        assert "".join(part.text for part in said.content[1:]) == text


def test_odd_text(teacher: LoopbackTeacher) -> None:
    def content(mode: str) -> str:
        teacher.script = mode
        return str(ask(teacher).document["choices"][0]["message"]["content"])

    assert content("think") == f"<think>{REASONING}</think>\n\n{TEXT}"
    assert content("think_cut") == f"<think>{REASONING}"
    assert content("surrogate") == "half \ud800 pair"
    assert {"\x00", "\u202e", "\u200b"} <= set(content("nul"))
    assert content("empty").isspace()
    assert len(content("big_line")) == 10_000_000
    assert TEXT.startswith(content("length"))


def test_usage_and_models_that_surprise(teacher: LoopbackTeacher) -> None:
    teacher.script = "no_usage"
    assert all("usage" not in ask(teacher, api=api).document for api in ("openai", "responses", "anthropic"))
    teacher.script = "other_model"
    assert ask(teacher).document["model"] == "another-model-2026"
    teacher.script = "cached"
    assert chat(teacher).usage.prompt_tokens_details.cached_tokens == 2
    said = message(teacher).usage
    assert (said.input_tokens, said.cache_read_input_tokens) == (2, 2)


@pytest.mark.parametrize("mode", ["gzip", "chunked"])
def test_the_same_answer_in_another_wrapping(teacher: LoopbackTeacher, mode: str) -> None:
    plain = ask(teacher)
    teacher.script = mode
    got = ask(teacher)
    body = gzip.decompress(got.body) if mode == "gzip" else got.body
    assert body == plain.body
    assert ("content-length" in got.headers) == (mode == "gzip")
    assert chat(teacher).choices[0].message.content == TEXT


RUBBISH = {
    "html": b"<html>",
    "object": b"{}",
    "null": b"null",
    "nothing": b"",
    "no_choices": b'{"id"',
    "bad_utf8": b'{"choices"',
    "huge": b"    ",
    "bomb": b"\x1f\x8b",
    "truncated": b'{"id": "chatcmpl',
}


@pytest.mark.parametrize("mode", RUBBISH)
def test_rubbish_with_status_200(teacher: LoopbackTeacher, mode: str) -> None:
    teacher.script = mode
    got = ask(teacher)
    assert got.status == 200
    assert got.body.startswith(RUBBISH[mode])
    assert teacher.billed_calls == (mode == "truncated")
    if mode in ("truncated", "bad_utf8", "huge", "html"):
        with pytest.raises(ValueError, match=r"\w"):
            json.loads(got.body)
    if mode == "huge":
        assert len(got.body) > 16 << 20
    if mode == "bomb":
        assert len(got.body) < 100_000
        assert len(gzip.decompress(got.body)) > 64 << 20


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 409, 422, 429, 500, 502, 503, 529])
def test_failures_are_exceptions_of_both_sdks(teacher: LoopbackTeacher, status: int) -> None:
    teacher.script = str(status)
    with pytest.raises(openai.APIStatusError) as one:
        chat(teacher)
    with pytest.raises(anthropic.APIStatusError) as other:
        message(teacher)
    assert one.value.status_code == other.value.status_code == status
    assert one.value.request_id == other.value.request_id == f"req-{status}"
    assert other.value.body["type"] == "error"  # type: ignore[index]
    assert ("sk-test-1234567" in str(one.value)) == ("sk-ant-1234567" in str(other.value)) == (status == 401)
    assert (teacher.requests, teacher.billed_calls) == (2, 0)


def test_failures_are_worded_as_each_vendor_does(teacher: LoopbackTeacher) -> None:
    def error(mode: str, api: str) -> tuple[int, dict[str, Any]]:
        teacher.script = mode
        got = ask(teacher, api=api)
        return got.status, got.document["error"]

    assert error("404", "openai")[1]["code"] == "model_not_found"
    assert error("404", "anthropic")[1]["type"] == "not_found_error"
    assert error("529", "anthropic")[1]["type"] == "overloaded_error"
    status, quota = error("quota", "openai")
    assert (status, quota["code"]) == (429, "insufficient_quota")
    status, quota = error("quota", "anthropic")
    assert (status, "credit balance" in quota["message"]) == (400, True)
    status, refused = error("refused_parameter", "openai")
    assert (status, refused["param"], refused["code"]) == (400, "temperature", "unsupported_parameter")
    status, refused = error("refused_parameter:top_p", "anthropic")
    assert (status, refused["message"].split(":")[0]) == (400, "top_p")
    assert error("too_long", "responses")[1]["code"] == "context_length_exceeded"
    assert teacher.billed_calls == 0


FORMS = {"int": "1", "float": "0.5", "negative": "-5", "huge": "1000000000", "900": "900", "soon": "soon"}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_retry_after(teacher: LoopbackTeacher, form: str) -> None:
    teacher.script = f"429:{form}"
    got = ask(teacher)
    assert (got.status, got.headers["retry-after"]) == (429, FORMS[form])


def test_retry_after_as_date_in_milliseconds_and_absent(teacher: LoopbackTeacher) -> None:
    teacher.script = "503:date"
    headers = ask(teacher).headers
    wait = parsedate_to_datetime(headers["retry-after"]) - parsedate_to_datetime(headers["date"])
    assert 1 <= wait.total_seconds() <= 3
    teacher.script = "429:ms"
    headers = ask(teacher).headers
    assert (headers["retry-after-ms"], "retry-after" in headers) == ("250", False)
    teacher.script = "429:absent"
    assert not [name for name in ask(teacher).headers if name.startswith("retry")]
    teacher.headers = {"Retry-After": "7"}
    assert ask(teacher).headers["retry-after"] == "7"
    teacher.script = "ok"
    assert "retry-after" not in ask(teacher).headers


def test_a_redirect_a_gateway_and_a_spent_minute(teacher: LoopbackTeacher) -> None:
    teacher.script = "redirect"
    got = ask(teacher)
    assert (got.status, got.headers["location"].startswith("http://127.0.0.1:9/")) == (307, True)
    teacher.script = "gateway"
    got = ask(teacher)
    assert (got.status, got.headers["content-type"], got.body[:6]) == (502, "text/html", b"<html>")
    teacher.script = "exhausted"
    got = ask(teacher)
    assert (got.headers["x-ratelimit-remaining-requests"], got.headers["x-ratelimit-reset-requests"]) == (
        "0",
        "1.000s",
    )
    assert ask(teacher, api="anthropic").headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert teacher.billed_calls == 2


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("rst", ConnectionResetError),
        ("close", http.client.RemoteDisconnected),
        ("drop", http.client.IncompleteRead),
    ],
)
def test_a_connection_that_breaks(teacher: LoopbackTeacher, mode: str, error: type[Exception]) -> None:
    teacher.script = mode
    with pytest.raises(error):
        ask(teacher)
    assert teacher.billed_calls == (mode != "close")
    assert eventually(lambda: teacher.in_flight == 0)
    teacher.script = "ok"
    assert ask(teacher).status == 200


def test_names_of_modes() -> None:
    assert set(MODES) >= BILLED
    assert check_mode("429:900") == "429:900"
    for wrong in ("oh", "200", "999", ""):
        with pytest.raises(ValueError, match="no mode"):
            check_mode(wrong)
    with pytest.raises(ValueError, match="no mode 'okay'"):
        LoopbackTeacher(script=["429", "okay"])
    with pytest.raises(ValueError, match="no mode 'gone'"):
        LoopbackTeacher(batch_modes="gone")
    with pytest.raises(ValueError, match="no operation 'submit'"):
        LoopbackTeacher(batch_faults={"submit": ["503"]})


def test_tokens_put_together_are_the_text() -> None:
    for text in ("", " ", "a", " a  b\n\nc ", "x\t"):
        assert "".join(tokens_of(text)) == text
        assert len(chances(text, 0)) == len(tokens_of(text))
