"""What each status means: stop, fail the row, or ask again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.errors import AuthError, UsageError
from zephyrctl.providers.base import Rejected, Retryable
from zephyrctl.providers.hosted.faults import fault_of
from zephyrctl.providers.hosted.transport import Reply

CANARY = "sk-canary-0123456789abcdef"


def fault(status: int, error: Any = None, **headers: str) -> Exception:
    body = error if isinstance(error, bytes) else json.dumps({"error": error or {}}).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return fault_of(Reply(status, names, body), label="openai:m", origin="https://o", key_variable="THE_KEY")


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refused_key_stops_everything(status: int) -> None:
    error = fault(status, {"message": f"Incorrect API key provided: {CANARY}"})
    assert isinstance(error, AuthError)
    assert "THE_KEY" in str(error.hint)
    assert CANARY not in str(error.as_dict())


def test_where_no_key_was_sent_the_endpoint_wants_one() -> None:
    error = fault_of(Reply(401, {}, b""), label="lab:m", origin="http://o", key_variable=None)
    assert isinstance(error, AuthError)
    assert "key_env" in str(error.hint)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, {"code": "insufficient_quota", "message": "You exceeded your current quota"}),
        (429, {"type": "insufficient_quota"}),
        (
            400,
            {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."},
        ),
        (403, {"type": "billing_error"}),
    ],
)
def test_no_credit_stops_everything(status: int, body: dict[str, str]) -> None:
    assert isinstance(fault(status, body), AuthError)


@pytest.mark.parametrize("status", [301, 302, 307, 308, 404])
def test_a_wrong_address_or_model_stops_everything(status: int) -> None:
    error = fault(status, {"message": "The model does not exist", "code": "model_not_found"})
    assert isinstance(error, UsageError)
    assert "https://o" in error.message


@pytest.mark.parametrize(
    ("status", "reason", "billed"),
    [
        (429, "rate_limit", False),
        (500, "server_error", False),
        (502, "server_error", False),
        (529, "server_error", False),
        (409, "conflict", False),
        (408, "conflict", True),
        (499, "conflict", True),
        (504, "server_error", True),
        (524, "server_error", True),
    ],
)
def test_a_passing_fault_is_asked_again(status: int, reason: str, billed: bool) -> None:
    error = fault(status, {"message": "later"}, retry_after="7", x_request_id="req-9")
    assert isinstance(error, Retryable)
    assert (error.reason, error.retry_after, error.status) == (reason, 7.0, status)
    assert error.request_id == "req-9"
    assert error.maybe_billed == billed
    assert fault(status, b"<html>").retry_after is None  # type: ignore[attr-defined]


REFUSED = [
    (
        "temperature",
        "unsupported_value",
        "temperature",
        "'temperature' does not support 0.2 with this model.",
    ),
    ("max_tokens", "unsupported_parameter", "max_tokens", "Use 'max_completion_tokens' instead."),
    ("stop", "unsupported_parameter", "stop", "'stop' is not supported with this model."),
    ("effort", "unsupported_value", "reasoning_effort", "'none' is not supported with the model."),
    ("effort", None, "reasoning.effort", "Unsupported value: 'minimal'"),
    ("system", "unsupported_value", "messages[0].role", "'messages[0].role' does not support 'system'"),
    ("schema", None, "response_format", "'response_format' of type 'json_schema' is not supported"),
    ("temperature", None, None, "`temperature` is deprecated for this model."),
    ("top_p", None, None, "`temperature` and `top_p` cannot both be specified for this model."),
    ("top_p", None, None, "top_p: Extra inputs are not permitted"),
    ("schema", None, None, "output_config.format: Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("setting", "code", "param", "said"), REFUSED)
def test_a_setting_that_is_refused_stops_everything(
    setting: str, code: str | None, param: str | None, said: str
) -> None:
    error = fault(400, {"code": code, "param": param, "message": said, "type": "invalid_request_error"})
    assert isinstance(error, UsageError)
    assert "zephyrctl.yaml" in str(error.hint)
    assert (f"may_drop=[{setting}]" in str(error.hint)) == (setting not in ("max_tokens", "system"))
    assert setting in error.message


@pytest.mark.parametrize(
    "error",
    [
        {"message": "This model's maximum context length is 8192 tokens", "param": "messages"},
        {"message": "Your request was flagged: 'temperature' in the prompt", "param": "prompt"},
        {"message": "messages: text content blocks must be non-empty"},
        {"message": "Unsupported image in messages[3]"},
        {},
    ],
)
def test_any_other_refusal_fails_its_row_alone(error: dict[str, str]) -> None:
    for status in (400, 413, 422):
        made = fault(status, error, request_id="req-1")
        assert isinstance(made, Rejected)
        assert (made.reason, made.status, made.request_id) == ("rejected", status, "req-1")


def test_a_servers_own_form_of_refusal_is_read() -> None:
    body = {"detail": [{"loc": ["body", "logprobs"], "msg": "Extra inputs are not permitted"}]}
    made = fault(422, json.dumps(body).encode())
    assert isinstance(made, UsageError)
    assert "logprobs: Extra inputs are not permitted" in made.message
    said = fault(422, b'{"detail": "no such thing"}')
    assert isinstance(said, Rejected)
    assert "no such thing" in said.detail


def test_a_model_that_is_not_there_by_its_code() -> None:
    assert isinstance(fault(400, {"code": "model_not_found"}), UsageError)


def test_a_limit_without_retry_after_ends_when_its_headers_say() -> None:
    names = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "6m0s"}
    made = fault(429, {}, **names)
    assert isinstance(made, Retryable)
    assert made.retry_after == 360
    assert fault(429, {}, retry_after="2", **names).retry_after == 2  # type: ignore[attr-defined]


def test_a_reset_without_an_end_is_no_time_to_wait_for() -> None:
    made = fault(429, x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="9" * 400)
    assert isinstance(made, Retryable)
    assert made.retry_after is None


@pytest.mark.parametrize("status", [400, 500])
def test_what_an_error_says_can_be_stored(status: int) -> None:
    made = fault(status, {"message": "half \ud800 pair"}, x_request_id="\udcff" * 300)
    assert isinstance(made, Retryable | Rejected)
    assert made.request_id == "\ufffd" * 200
    assert made.detail == f"HTTP {status}: half \ufffd pair"


@given(st.integers(300, 599), st.binary(max_size=40) | st.just(b"[" * 100_000))
def test_any_error_has_a_meaning(status: int, body: bytes) -> None:
    made = fault(status, body)
    assert isinstance(made, AuthError | UsageError | Retryable | Rejected)


FIELD = st.sampled_from(["error", "message", "code", "type", "param", "detail", "loc", "msg"])
BODY = st.recursive(
    st.none() | st.text(max_size=9) | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(FIELD, inner),
    max_leaves=9,
)


@given(BODY)
def test_any_error_body(body: Any) -> None:
    made = fault(400, json.dumps(body).encode())
    assert isinstance(made, AuthError | UsageError | Rejected)
