"""What the loopback teacher sends: per scripted mode a status, headers and bytes, in each API's form."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from types import MappingProxyType
from typing import Any

from zephyrctl.testing.answers import Said, answer_text, say
from zephyrctl.testing.documents import Api, document
from zephyrctl.testing.serving import Manner, Wire

__all__ = ["BILLED", "MODES", "Api", "answer_text", "check_mode", "failure", "refused", "wire"]

MODES: Mapping[str, str] = MappingProxyType(
    {
        "ok": "an answer",
        "slow": "an answer after 0.2 s at least",
        "empty": "blank text",
        "length": "an answer cut off by its length",
        "refusal": "the model refuses",
        "filtered": "a content filter took the answer away",
        "reasoning": "cut off while reasoning, no answer (reasoning:hidden counts it without its text)",
        "reasoned": "an answer with its reasoning beside it (reasoned:hidden)",
        "think": "an answer after <think>…</think> in the text",
        "think_cut": "cut off inside <think>",
        "surrogate": "text with half a surrogate pair",
        "nul": "text with NUL, bidi and zero-width characters",
        "big_line": "an answer of 10 MB in one line",
        "cached": "an answer; half of the prompt was read from the prompt cache",
        "no_usage": "an answer without token counts",
        "no_logprobs": "an answer without the log-probabilities that were asked for",
        "other_model": "an answer of another model than asked",
        "exhausted": "an answer whose headers say that no requests are left for a second",
        "gzip": "an answer, compressed",
        "chunked": "an answer in chunks, without a length",
        "truncated": "an answer whose JSON ends in the middle",
        "hang": "no reply, ever (no_reply is another name)",
        "no_reply": "no reply, ever",
        "drip": "an answer, one byte every 50 ms",
        "drop": "the connection closed after half of an answer",
        "rst": "a TCP reset instead of the answer",
        "close": "the connection closed before any work was done",
        "html": "HTML with status 200",
        "object": "{} with status 200",
        "null": "null with status 200",
        "nothing": "an empty body with status 200",
        "no_choices": "a reply without a choice",
        "bad_utf8": "a reply that is not UTF-8",
        "huge": "17 MB of spaces",
        "bomb": "68 MB of spaces, compressed to 66 kB",
        "quota": "no credit left",
        "redirect": "307 to another host",
        "gateway": "502 with a page of HTML",
        "refused_parameter": "400 naming a parameter (refused_parameter:top_p; temperature if none is given)",
        "too_long": "400, the prompt is longer than the model's window",
    }
)
"""Every mode by name; beside these, each status from 400 to 599 (`401` repeats the caller's key)."""

BILLED = frozenset(MODES) - {
    *("close", "html", "object", "null", "nothing", "no_choices", "bad_utf8", "huge", "bomb"),
    *("quota", "redirect", "gateway", "refused_parameter", "too_long"),
}
"""Modes in which the model did its work, whether or not the reply arrives."""

_MANNERS: Mapping[str, Manner] = MappingProxyType(
    {
        "hang": "never",
        "no_reply": "never",
        "drip": "drip",
        "drop": "cut",
        "rst": "reset",
        "close": "close",
        "chunked": "chunked",
    }
)
_RAW = {
    "html": b"<html><body>502 Bad Gateway</body></html>",
    "object": b"{}",
    "null": b"null",
    "nothing": b"",
    "no_choices": b'{"id": "x", "choices": [], "content": null}',
    "bad_utf8": b'{"choices": [{"message": {"content": "\xff\xfe"}}]}',
}
_HUGE = 17 << 20
_JSON = "application/json"
_OPENAI_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def check_mode(mode: str) -> str:
    """The mode itself. Raises ValueError where there is none of this name."""
    name = mode.partition(":")[0]
    if name not in MODES and not (name.isdecimal() and 400 <= int(name) <= 599):
        raise ValueError(f"the loopback teacher has no mode {mode!r}; it has {', '.join(MODES)} and statuses")
    return mode


def wire(
    mode: str,
    api: Api,
    body: Mapping[str, Any],
    *,
    key: str = "",
    headers: Mapping[str, str] = MappingProxyType({}),
    said: Said | None = None,
) -> Wire:
    """The reply for a mode.

    `key` is the caller's API key (repeated by `401`, as real servers do), `headers` go on replies that report a
    failure, `said` is the answer where it was made before.
    """
    name, _, form = check_mode(mode).partition(":")
    if name.isdecimal():
        return failure(int(name), api, key=key, model=body.get("model"), headers={**headers, **waiting(form)})
    special = _special(name, form, api, headers)
    if special is not None:
        return special
    if name in ("hang", "no_reply", "close", "rst"):
        return Wire(200, b"", manner=_MANNERS[name])
    extra = {"content-type": _JSON}
    content = json.dumps(document(mode, api, body, said or say(mode, body))).encode()
    if name == "truncated":
        content = content[: len(content) // 2]
    if name == "gzip":
        content = gzip.compress(content)
        extra["content-encoding"] = "gzip"
    if name == "exhausted":
        extra |= rate_headers(api, limit=60, left=0, reset=1.0)
    return Wire(200, content, extra, _MANNERS.get(name, "whole"))


def waiting(form: str) -> dict[str, str]:
    """The header for a form of Retry-After: int, float, date, ms, negative, huge, absent, or a value as it is."""
    if form == "ms":
        return {"retry-after-ms": "250"}
    now = datetime.now(UTC)
    if form == "date":
        later = format_datetime(now + timedelta(seconds=2), usegmt=True)
        return {"retry-after": later, "date": format_datetime(now, usegmt=True)}
    values = {"int": "1", "float": "0.5", "negative": "-5", "huge": "1000000000"}
    return {"retry-after": values.get(form, form)} if form not in ("", "absent") else {}


def rate_headers(api: Api, *, limit: int, left: int, reset: float) -> dict[str, str]:
    """What replies tell about a rate limit: requests a minute, how many are left, seconds until there are more."""
    if api == "anthropic":
        until = (datetime.now(UTC) + timedelta(seconds=reset)).isoformat(timespec="seconds")
        prefix, when = "anthropic-ratelimit-requests-", until.replace("+00:00", "Z")
        return {f"{prefix}limit": str(limit), f"{prefix}remaining": str(left), f"{prefix}reset": when}
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(left),
        "x-ratelimit-reset-requests": f"{reset:.3f}s" if reset >= 1 else f"{round(reset * 1000)}ms",
    }


def failure(
    status: int,
    api: Api,
    *,
    code: str = "",
    message: str = "",
    param: str | None = None,
    key: str = "",
    model: object = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Wire:
    """A reply that reports a failure, in the API's form."""
    if not message:
        message = {
            401: f"Incorrect API key provided: {key}",
            404: f"the model {model!r} is not served here",
        }.get(status, f"scripted {status}")
    if api == "anthropic":
        kind = _ANTHROPIC_KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        error: dict[str, Any] = {"type": kind, "message": message}
        document: dict[str, Any] = {"type": "error", "error": error, "request_id": f"req-{status}"}
    else:
        code = code or _OPENAI_CODES.get(status, "")
        kind = "server_error" if status >= 500 else "requests" if status == 429 else "invalid_request_error"
        kind = code if code == "insufficient_quota" else kind
        error = {"message": message, "type": kind, "param": param, "code": code or None}
        document = {"error": error}
    identity = "request-id" if api == "anthropic" else "x-request-id"
    extra = {"content-type": _JSON, identity: f"req-{status}", **headers}
    return Wire(status, json.dumps(document).encode(), extra)


def refused(api: Api, name: str, *, accepted: Iterable[object] = ()) -> Wire:
    """The 400 for a parameter that the model does not take, or takes with other values only."""
    values = ", ".join(map(repr, accepted))
    code = "unsupported_value" if values else "unsupported_parameter"
    what = f"takes only {values} for `{name}`" if values else f"does not take the parameter `{name}`"
    message = f"{name}: this model {what}" if api == "anthropic" else f"This model {what}."
    return failure(400, api, code=code, message=message, param=name)


def _special(name: str, form: str, api: Api, headers: Mapping[str, str]) -> Wire | None:
    """Replies that hold no answer of the model, beside plain statuses."""
    if name in _RAW:
        return Wire(200, _RAW[name], {"content-type": "text/html" if name == "html" else _JSON})
    if name == "huge":
        return Wire(200, _spaces(1), {"content-type": _JSON})
    if name == "bomb":
        return Wire(200, _bomb(), {"content-type": _JSON, "content-encoding": "gzip"})
    if name == "redirect":
        return Wire(307, b"", {"location": "http://127.0.0.1:9/elsewhere", **headers})
    if name == "gateway":
        return Wire(502, _RAW["html"], {"content-type": "text/html", **headers})
    if name == "refused_parameter":
        return refused(api, form or "temperature")
    if name == "too_long":
        message = "prompt is too long for the window of this model"
        return failure(400, api, code="context_length_exceeded", message=message)
    if name == "quota":
        if api == "anthropic":
            return failure(400, api, message="Your credit balance is too low for this request.")
        return failure(429, api, code="insufficient_quota", message="the quota is used up", headers=headers)
    return None


@cache
def _spaces(times: int) -> bytes:
    return b" " * (times * _HUGE)


@cache
def _bomb() -> bytes:
    return gzip.compress(_spaces.__wrapped__(4))
