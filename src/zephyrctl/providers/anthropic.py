"""Anthropic's Messages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from zephyrctl.providers.base import (
    Ask,
    Reading,
    Retryable,
    Usage,
    clean_text,
    count,
    json_object,
    outcome_of,
    wire_messages,
)
from zephyrctl.providers.hosted import HostedProvider, checked_url, http_client_options, origin_of
from zephyrctl.providers.keys import api_key

BASE_URL = "https://api.anthropic.com"
BASE_URL_VARIABLE = "ANTHROPIC_BASE_URL"
KEY_VARIABLE = "ANTHROPIC_API_KEY"
_NAMED = ("model", "messages", "max_tokens", "system")
_CUT = ("max_tokens", "model_context_window_exceeded")


class AnthropicProvider(HostedProvider):
    """A Claude model. Messages has no seed: draws differ by their number in the ledger's key alone."""

    kind = "anthropic"
    endpoint = "/v1/messages"
    key_variable = KEY_VARIABLE
    exceptions: Mapping[str, str] = {
        "APITimeoutError": "timeout",
        "APIConnectionError": "transport",
        "APIResponseValidationError": "bad_envelope",
        "APIWebhookValidationError": "setup",
        "RetryableError": "transport",
        "CredentialsError": "credentials",
        "IdentityTokenFileError": "credentials",
        "WorkloadIdentityError": "credentials",
        "APIError": "bad_envelope",
        "AnthropicError": "setup",
    }

    def __init__(self, model: str) -> None:
        check_key()
        url = os.environ.get(BASE_URL_VARIABLE, "").strip()
        base_url = checked_url(url, BASE_URL_VARIABLE) if url else BASE_URL
        notices = (f"{BASE_URL_VARIABLE} is set: {model} is asked at {origin_of(base_url)}",) if url else ()
        super().__init__(model, base_url=base_url, notices=notices)

    def wire(self, ask: Ask) -> dict[str, Any]:
        """The body of a Messages request.

        System messages stand apart; a top_p of 1 is the default and is left out.
        """
        sampling = ask.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [m for m in wire_messages(ask.messages) if m["role"] != "system"],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
        }
        system = "\n\n".join(m.content for m in ask.messages if m.role == "system")
        if system:
            body["system"] = system
        if sampling.top_p != 1.0:
            body["top_p"] = sampling.top_p
        return body

    def read(self, raw: bytes) -> Reading:
        """A message. Raises Retryable("bad_envelope") where there is no list of content blocks."""
        document = json_object(raw)
        blocks = document.get("content")
        if not isinstance(blocks, list):
            raise Retryable("bad_envelope", "the reply holds no content")
        parts = [str(b.get("text") or "") for b in blocks if isinstance(b, dict) and b.get("type") == "text"]
        text = clean_text("".join(parts))
        finish = str(document.get("stop_reason") or "")
        usage = document.get("usage")
        return Reading(
            text=text,
            outcome=outcome_of(text, refused=finish == "refusal", cut=finish in _CUT),
            finish_reason=finish,
            served_model=str(document.get("model") or ""),
            usage=Usage(_prompt_tokens(usage), count(usage.get("output_tokens")))
            if isinstance(usage, dict)
            else None,
        )

    def _open(self) -> Any:
        from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient

        options = http_client_options()
        return AsyncAnthropic(
            api_key=check_key(),
            base_url=self.base_url,
            max_retries=0,
            timeout=options["timeout"],
            http_client=DefaultAsyncHttpxClient(**options),
            open_telemetry=False,
        )

    def _call(self, client: Any, body: Mapping[str, Any]) -> Any:
        # The SDK's signature no longer names the sampling settings, which the API still takes; they go in as
        # they are.
        extra = {name: value for name, value in body.items() if name not in _NAMED}
        named = {name: value for name, value in body.items() if name in _NAMED}
        return client.messages.with_streaming_response.create(**named, extra_body=extra)


def check_key() -> str:
    """The API key. Raises AuthError when there is none."""
    return api_key(KEY_VARIABLE, "sk-ant-…")


def _prompt_tokens(usage: Mapping[str, Any]) -> int:
    # Tokens read from or written to the prompt cache are not part of input_tokens there.
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return sum(count(usage.get(name)) for name in names)
