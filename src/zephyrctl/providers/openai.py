"""OpenAI's Chat Completions, and whatever speaks them at the address in OPENAI_BASE_URL."""

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

BASE_URL = "https://api.openai.com/v1"
BASE_URL_VARIABLE = "OPENAI_BASE_URL"
KEY_VARIABLE = "OPENAI_API_KEY"


class OpenAIProvider(HostedProvider):
    """A chat model.

    The key is asked for when it is made and again when it connects; it is not kept on the object.
    """

    kind = "openai"
    endpoint = "/chat/completions"
    key_variable = KEY_VARIABLE
    exceptions: Mapping[str, str] = {
        "APITimeoutError": "timeout",
        "APIConnectionError": "transport",
        "APIResponseValidationError": "bad_envelope",
        "LengthFinishReasonError": "bad_envelope",
        "ContentFilterFinishReasonError": "bad_envelope",
        "WebSocketConnectionClosedError": "transport",
        "WebSocketQueueFullError": "transport",
        "SubjectTokenProviderError": "credentials",
        "InvalidWebhookSignatureError": "setup",
        "APIError": "bad_envelope",
        "OpenAIError": "setup",
    }

    def __init__(self, model: str) -> None:
        check_key()
        url = os.environ.get(BASE_URL_VARIABLE, "").strip()
        base_url = checked_url(url, BASE_URL_VARIABLE) if url else BASE_URL
        notices = (f"{BASE_URL_VARIABLE} is set: {model} is asked at {origin_of(base_url)}",) if url else ()
        super().__init__(model, base_url=base_url, notices=notices)

    def wire(self, ask: Ask) -> dict[str, Any]:
        """The body of a Chat Completions request."""
        sampling = ask.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": wire_messages(ask.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        return body

    def read(self, raw: bytes) -> Reading:
        """A chat completion. Raises Retryable("bad_envelope") where there is no choice with a message."""
        document = json_object(raw)
        choices = document.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise Retryable("bad_envelope", "the reply holds no choice with a message")
        finish = str(choice.get("finish_reason") or "")
        refusal = message.get("refusal")
        text = clean_text(_content(message.get("content")) or (refusal if isinstance(refusal, str) else ""))
        usage = document.get("usage")
        return Reading(
            text=text,
            outcome=outcome_of(
                text, refused=bool(refusal), filtered=finish == "content_filter", cut=finish == "length"
            ),
            finish_reason=finish,
            served_model=str(document.get("model") or ""),
            usage=Usage(count(usage.get("prompt_tokens")), count(usage.get("completion_tokens")))
            if isinstance(usage, dict)
            else None,
        )

    def _open(self) -> Any:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        options = http_client_options()
        return AsyncOpenAI(
            api_key=check_key(),
            base_url=self.base_url,
            max_retries=0,
            timeout=options["timeout"],
            http_client=DefaultAsyncHttpxClient(**options),
        )

    def _call(self, client: Any, body: Mapping[str, Any]) -> Any:
        return client.chat.completions.with_streaming_response.create(**body)


def check_key() -> str:
    """The API key. Raises AuthError when there is none."""
    return api_key(KEY_VARIABLE, "sk-…")


def _content(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
