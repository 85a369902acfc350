"""What a reply that is not a success means: stop everything, fail this row, or ask again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from zephyrctl.errors import AuthError, UsageError
from zephyrctl.providers.base import Rejected, Retryable, clean_text, name_of
from zephyrctl.providers.calling.retry import retry_after
from zephyrctl.providers.hosted.ratelimits import rest_of
from zephyrctl.providers.hosted.transport import Reply
from zephyrctl.redact import redact

_NO_CREDIT = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "billing_error",
    "account_deactivated",
    "access_terminated",
}
FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "seed": "seed",
    "stop": "stop",
    "stop_sequences": "stop",
    "logprobs": "logprobs",
    "top_logprobs": "logprobs",
    "response_format": "schema",
    "text.format": "schema",
    "output_config.format": "schema",
    "reasoning_effort": "effort",
    "reasoning.effort": "effort",
    "reasoning": "effort",
    "output_config.effort": "effort",
    "thinking": "effort",
}
"""Which setting a field of a request body carries."""
_TIMED_OUT = (408, 499, 504, 524)
"""Somebody on the way gave up waiting, while the model may still be at work."""
_BROKEN_OFF = {
    *("error", "abort", "failed", "in_progress", "cancelled", "queued"),
    "insufficient_system_resource",
}
_TOOL_CALLS = {"tool_calls", "function_call", "tool_use"}
_REFUSED_CODES = {"unsupported_parameter", "unsupported_value", "unknown_parameter"}
_REFUSED_WORDS = re.compile(
    r"unsupported|not supported|does(?: not|n't) support|deprecated|not permitted|cannot both|unrecognized"
    r"|unknown (?:parameter|field|argument)|only the default",
    re.IGNORECASE,
)


def fault_of(reply: Reply, *, label: str, origin: str, key_variable: str | None) -> Exception:
    """The error for a reply with a status of 300 or more."""
    status, headers = reply.status, reply.headers
    codes, param, said = error_fields(reply.body)
    detail = f"HTTP {status}" + (f": {said}" if said else "")
    here = f"{label} at {origin}"
    hint = f"check {key_variable}" if key_variable else "name its key with key_env in zephyrctl.yaml"
    if status in (401, 402, 403):
        why = "no credit" if status == 402 else "the key was refused" if key_variable else "a key is wanted"
        return AuthError(f"{here}: {why} (HTTP {status})", hint=hint)
    if codes & _NO_CREDIT or "credit balance is too low" in said.lower():
        return AuthError(
            f"{here}: the account has no credit left (HTTP {status})",
            hint="add credit, then run the same command again",
        )
    if status == 404 or "model_not_found" in codes:
        return UsageError(
            f"{label}: {origin} knows no such model or address ({detail})",
            hint="check the model's name; it may be retired",
        )
    if 300 <= status < 400:
        return UsageError(f"{label}: {origin} redirects elsewhere, and redirects are not followed")
    request_id = request_id_of(headers)
    if status == 429 or status >= 500 or status in (408, 409, 425, 499):
        reason = "rate_limit" if status == 429 else "server_error" if status >= 500 else "conflict"
        wait = retry_after(headers)
        if wait is None and status == 429:
            wait = rest_of(headers)
        return Retryable(
            reason,
            detail,
            retry_after=wait,
            status=status,
            request_id=request_id,
            maybe_billed=status in _TIMED_OUT,
        )
    setting = refused_setting(codes, param, said) if status in (400, 422) else None
    if setting:
        return UsageError(
            f"{label}: {origin} refuses the setting {setting} ({detail})", hint=_mended(setting)
        )
    return Rejected("rejected", detail, status=status, request_id=request_id)


_SAY = {
    "max_tokens": "limit: max_completion_tokens",
    "system": "system: none",
    "effort": "efforts: 'low,high'",
}
"""What to say of an endpoint's models where it is not simply that they refuse a setting."""


def _mended(setting: str) -> str:
    say = _SAY.get(setting, f"{setting}: false")
    drop = "" if setting in ("max_tokens", "system") else f", and allow it with --set may_drop=[{setting}]"
    return (
        f"say in zephyrctl.yaml what it takes (accepts: {{{say}}} for a named endpoint, models: {{NAME: {{like: "
        f"KNOWN}}}} for a vendor's model){drop}"
    )


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """What the endpoint calls the request, for questions to its support."""
    return name_of(headers.get("x-request-id") or headers.get("request-id")) or None


def check_error(part: Mapping[str, Any]) -> None:
    """Raises Retryable("server_error") where a reply, or a part of it, tells of an error: its text is half."""
    error = part.get("error")
    if error:
        said = _short(error.get("message") if isinstance(error, dict) else error)
        detail = "the reply tells of an error" + (f": {said}" if said else "")
        raise Retryable("server_error", detail, maybe_billed=True)


def check_end(reason: str, text: str, *, told: bool) -> None:
    """Raises Retryable where `reason`, why the reply ends, shows that it is no answer.

    `told` = the reason is one that explains a reply without `text`.
    """
    if reason in _BROKEN_OFF:
        raise Retryable("server_error", f"the reply was broken off ({reason})", maybe_billed=True)
    if reason in _TOOL_CALLS:
        raise Retryable("bad_envelope", "the reply calls a tool, and none was offered", maybe_billed=True)
    if not told and not text.strip():
        raise Retryable("bad_envelope", "the reply holds no text and does not say why", maybe_billed=True)


def error_fields(raw: bytes) -> tuple[set[str], str, str]:
    """Codes, parameter and text of an error body, in OpenAI's, Anthropic's or FastAPI's form.

    The text is redacted and short; all are empty where the body has another form.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return set(), "", ""
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    if not isinstance(body, dict):
        return set(), "", ""
    codes = {str(body[name]) for name in ("code", "type") if body.get(name)}
    param, text = body.get("param"), body.get("message") or body.get("detail")
    if isinstance(text, list) and text and isinstance(text[0], dict):
        place = text[0].get("loc")
        param = ".".join(map(str, place[1:])) if isinstance(place, list) else None
        text = f"{param}: {text[0].get('msg')}"
    return codes, param if isinstance(param, str) else "", _short(text)


def _short(text: object) -> str:
    return redact(clean_text(" ".join(text.split())))[:300] if isinstance(text, str) else ""


def refused_setting(codes: set[str], param: str, said: str) -> str | None:
    """The setting that a 400 refuses as such, for every row alike; None for a refusal of this one request."""
    if param and (codes & _REFUSED_CODES or _REFUSED_WORDS.search(said)):
        if param.startswith("messages") and "'system'" in said:
            return "system"
        named = FIELDS.get(param) or FIELDS.get(param.split(".")[0])
        if named:
            return named
    begins = re.match(r"([a-z_.]+): ", said)
    if begins and begins[1] in FIELDS:
        # Anthropic's form for a field whose value the API does not take
        return FIELDS[begins[1]]
    if not _REFUSED_WORDS.search(said):
        return None
    if "cannot both" in said.lower() and "top_p" in said:
        return "top_p"
    for field in sorted(FIELDS, key=len, reverse=True):
        if re.search(rf"[`'\"]{re.escape(field)}[`'\"]", said):
            return FIELDS[field]
    return None
