"""Anthropic's Messages, and whatever else speaks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zephyrctl.money import Tokens
from zephyrctl.providers.base import Ask, Reading, Retryable, clean_text, count, json_object, outcome_of
from zephyrctl.providers.hosted.openai import detail
from zephyrctl.providers.hosted.provider import HostedProvider, chat_messages
from zephyrctl.providers.hosted.reasoning import split_thinking

_VERSION = "2026-10-21"
"""The version of the API that the SDK asks for, and that its types describe."""
_CUT = ("max_tokens", "model_context_window_exceeded")


class AnthropicProvider(HostedProvider):
    """A Claude model. Messages has no seed: draws differ by their number in the ledger's key alone."""

    kind = "anthropic"
    endpoint = "/v1/messages"
    limits = ("max_tokens",)

    def wire(self, ask: Ask) -> dict[str, Any]:
        """The body of a Messages request; system messages stand apart."""
        fitted = self._fitted(ask)
        turns = chat_messages(ask, "system")
        body: dict[str, Any] = {
            "max_tokens": fitted.max_tokens,
            "messages": [turn for turn in turns if turn["role"] != "system"],
            "model": self.model,
        }
        config: dict[str, Any] = {}
        if fitted.effort is not None:
            config["effort"] = fitted.effort
        if fitted.schema is not None:
            config["format"] = {"schema": dict(fitted.schema.definition), "type": "json_schema"}
        if config:
            body["output_config"] = config
        if fitted.stop:
            body["stop_sequences"] = list(fitted.stop)
        system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
        if system:
            body["system"] = system
        if fitted.temperature is not None:
            body["temperature"] = fitted.temperature
        if fitted.top_p is not None:
            body["top_p"] = fitted.top_p
        return body

    def read(self, raw: bytes) -> Reading:
        """A message. Raises Retryable("bad_envelope") where there is no list of content blocks."""
        document = json_object(raw)
        blocks = document.get("content")
        if not isinstance(blocks, list):
            raise Retryable("bad_envelope", "the reply holds no content", maybe_billed=True)
        known = [block for block in blocks if isinstance(block, dict)]
        written = "".join(str(b.get("text") or "") for b in known if b.get("type") == "text")
        thought, text = split_thinking(clean_text(written))
        apart = "".join(str(b.get("thinking") or "") for b in known if b.get("type") == "thinking")
        thinking = any(b.get("type") in ("thinking", "redacted_thinking") for b in known)
        finish = str(document.get("stop_reason") or "")
        tokens = _tokens(document.get("usage"))
        return Reading(
            text=text,
            outcome=outcome_of(
                text,
                refused=finish == "refusal",
                cut=finish in _CUT,
                reasoned=thinking or bool(thought) or bool(tokens and tokens.reasoning),
            ),
            finish_reason=finish,
            served_model=str(document.get("model") or ""),
            tokens=tokens,
            reasoning=clean_text(apart) or thought,
        )

    def _headers(self, key: str | None) -> dict[str, str]:
        return {**super()._headers(key), "anthropic-version": _VERSION}


def _tokens(usage: object) -> Tokens | None:
    """Tokens read from or written to the prompt cache are not part of `input_tokens` there; here they are."""
    if not isinstance(usage, dict):
        return None
    cached, written = _cache(usage)
    return Tokens(
        count(usage.get("input_tokens")) + cached + written,
        count(usage.get("output_tokens")),
        cached=cached,
        cache_write=written,
        reasoning=detail(usage, "output_tokens_details", "thinking_tokens"),
    )


def _cache(usage: Mapping[str, Any]) -> tuple[int, int]:
    return count(usage.get("cache_read_input_tokens")), count(usage.get("cache_creation_input_tokens"))
