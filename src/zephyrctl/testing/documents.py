"""The JSON documents of the three APIs: a chat completion, a response, a message, with an answer inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from zephyrctl.testing.answers import REFUSAL, Said, chances

Api = Literal["openai", "responses", "anthropic"]
"""Chat Completions, Responses and Messages."""


def document(mode: str, api: Api, body: Mapping[str, Any], said: Said) -> dict[str, Any]:
    """The reply of an API that carries an answer."""
    name = mode.partition(":")[0]
    identity = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]
    model = "another-model" if name == "other_model" else str(body.get("model"))
    if name == "no_logprobs":
        body = {field: value for field, value in body.items() if field not in ("logprobs", "include")}
    made = _FORMS[api](body, said, f"{model}-2026", identity)
    if name == "no_usage":
        made.pop("usage")
    return made


def _completion(body: Mapping[str, Any], said: Said, model: str, identity: str) -> dict[str, Any]:
    finish = {"filtered": "content_filter", "refusal": "stop"}.get(said.finish, said.finish)
    choices = []
    for index, text in enumerate(said.texts):
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if said.finish in ("refusal", "filtered"):
            message["content"] = None
        if said.finish == "refusal":
            message["refusal"] = text
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        asked = body.get("logprobs") and message["content"] is not None
        logprobs = {"content": chances(text, body.get("top_logprobs") or 0), "refusal": None}
        choices.append(
            {
                "index": index,
                "message": message,
                "finish_reason": finish,
                "logprobs": logprobs if asked else None,
            }
        )
    tokens = said.tokens
    return {
        "id": f"chatcmpl-{identity}",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": tokens.prompt,
            "completion_tokens": tokens.completion,
            "total_tokens": tokens.prompt + tokens.completion,
            "prompt_tokens_details": {"cached_tokens": tokens.cached},
            "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
        },
        "service_tier": "default",
        "system_fingerprint": "fp_loopback",
    }


def _response(body: Mapping[str, Any], said: Said, model: str, identity: str) -> dict[str, Any]:
    text = said.texts[0]
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
    if "message.output_text.logprobs" in (body.get("include") or []):
        part["logprobs"] = chances(text, body.get("top_logprobs") or 0)
    if said.finish == "refusal":
        part = {"type": "refusal", "refusal": REFUSAL}
    why = {"length": "max_output_tokens", "filtered": "content_filter"}.get(said.finish)
    status = "incomplete" if why else "completed"
    output: list[dict[str, Any]] = []
    if said.tokens.reasoning:
        summary = [{"type": "summary_text", "text": said.reasoning}] if said.reasoning else []
        output.append({"type": "reasoning", "id": f"rs_{identity}", "summary": summary})
    if said.finish != "filtered" and (text or not said.tokens.reasoning):
        output.append(
            {
                "type": "message",
                "id": f"msg_{identity}",
                "role": "assistant",
                "status": status,
                "content": [part],
            }
        )
    tokens = said.tokens
    return {
        "id": f"resp_{identity}",
        "object": "response",
        "created_at": 0,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": why} if why else None,
        "model": model,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": tokens.prompt,
            "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": 0},
            "output_tokens": tokens.completion,
            "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
            "total_tokens": tokens.prompt + tokens.completion,
        },
    }


def _message(body: Mapping[str, Any], said: Said, model: str, identity: str) -> dict[str, Any]:
    stop = {"length": "max_tokens", "stop": "end_turn"}.get(said.finish, "refusal")
    content: list[dict[str, Any]] = []
    if said.tokens.reasoning:
        content.append({"type": "thinking", "thinking": said.reasoning, "signature": identity})
    if stop != "refusal" and (said.texts[0] or not content):
        content.append({"type": "text", "text": said.texts[0]})
    tokens = said.tokens
    return {
        "id": f"msg_{identity}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": tokens.prompt - tokens.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": tokens.cached,
            "output_tokens": tokens.completion,
        },
    }


_FORMS = {"openai": _completion, "responses": _response, "anthropic": _message}
