"""What the loopback teacher sends: per scripted mode a status, headers and bytes, in either API's form."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from zephyrctl.sandbox.teacher import ROLES, reply

Api = Literal["openai", "anthropic"]

BILLED = frozenset(
    {"ok", "slow", "empty", "length", "refusal", "filtered", "truncated", "hang", "drop", "drip", "surrogate"}
)
"""Modes in which the model did its work, whether or not the reply arrives."""

STATUS = {"401": 401, "402": 402, "403": 403, "404": 404, "400": 400, "408": 408, "409": 409, "422": 422}
STATUS |= {"429": 429, "quota": 429, "500": 500, "502": 502, "503": 503, "529": 529, "redirect": 307}
_HUGE = 17 << 20


@dataclass(frozen=True)
class Wire:
    """One HTTP reply."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def answer_text(body: Mapping[str, Any]) -> str:
    """The sandbox teacher's answer to a request of either API; equal bodies get equal answers."""
    model = str(body.get("model", ""))
    messages = list(body.get("messages") or [])
    if body.get("system"):
        messages = [{"role": "system", "content": body["system"]}, *messages]
    return reply(
        model if model in ROLES else "teacher",
        messages,
        draw=0,
        seed=int(body.get("seed") or 0),
        temperature=float(body.get("temperature") or 0.0),
    )


def wire(mode: str, api: Api, body: Mapping[str, Any], *, key: str, headers: Mapping[str, str]) -> Wire:
    """The reply for a mode. `key` is the caller's API key (echoed by `401`, as real servers do)."""
    if mode in STATUS:
        return _failed(mode, api, key, headers)
    raw = {
        "html": b"<html><body>502 Bad Gateway</body></html>",
        "object": b"{}",
        "null": b"null",
        "nothing": b"",
        "no_choices": b'{"id": "x", "choices": [], "content": null}',
        "bad_utf8": b'{"choices": [{"message": {"content": "\xff\xfe"}}]}',
        "huge": b" " * _HUGE if mode == "huge" else b"",
    }.get(mode)
    if raw is not None:
        kind = "text/html" if mode == "html" else "application/json"
        return Wire(200, raw, {"content-type": kind})
    if mode == "bomb":
        packed = gzip.compress(b" " * (4 * _HUGE))
        return Wire(200, packed, {"content-type": "application/json", "content-encoding": "gzip"})
    document = json.dumps(_document(mode, api, body)).encode()
    if mode == "truncated":
        document = document[: len(document) // 2]
    return Wire(200, document, {"content-type": "application/json"})


def _failed(mode: str, api: Api, key: str, headers: Mapping[str, str]) -> Wire:
    code = {"quota": "insufficient_quota", "404": "model_not_found"}.get(mode, f"mode_{mode}")
    message = f"Incorrect API key provided: {key}" if mode == "401" else f"scripted {mode}"
    error = {"type": code, "code": code, "message": message}
    document = {"error": error} if api == "openai" else {"type": "error", "error": error}
    extra = {"location": "http://127.0.0.1:9/elsewhere"} if mode == "redirect" else {}
    return Wire(
        STATUS[mode],
        json.dumps(document).encode(),
        {"content-type": "application/json", "x-request-id": f"req-{mode}", **extra, **headers},
    )


def _document(mode: str, api: Api, body: Mapping[str, Any]) -> dict[str, Any]:
    text = {"empty": " \n", "surrogate": "half \ud800 pair"}.get(mode) or answer_text(body)
    if mode == "length":
        text = text[: max(1, len(text) // 2)]
    identity = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]
    prompt = sum(len(str(m.get("content", "")).split()) for m in body.get("messages") or [])
    if api == "anthropic":
        stop = {"length": "max_tokens", "refusal": "refusal", "filtered": "refusal"}.get(mode, "end_turn")
        return {
            "id": f"msg_{identity}",
            "type": "message",
            "role": "assistant",
            "model": f"{body.get('model')}-2026",
            "content": [] if stop == "refusal" else [{"type": "text", "text": text}],
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": prompt, "output_tokens": len(text.split())},
        }
    finish = {"length": "length", "filtered": "content_filter"}.get(mode, "stop")
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if mode == "refusal":
        message |= {"content": None, "refusal": "I cannot help with that."}
    if mode == "filtered":
        message["content"] = None
    return {
        "id": f"chatcmpl-{identity}",
        "object": "chat.completion",
        "created": 0,
        "model": f"{body.get('model')}-2026",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": len(text.split()), "total_tokens": 0},
    }
