"""Anthropic's Messages, and whatever else speaks them."""

from __future__ import annotations

from typing import Any

from zephyrctl.money import Tokens
from zephyrctl.providers.base import (
    Ask,
    Reading,
    Retryable,
    count,
    json_object,
    name_of,
    outcome_of,
    text_of,
)
from zephyrctl.providers.hosted.faults import check_end, check_error
from zephyrctl.providers.hosted.openai import detail, tokens_of
from zephyrctl.providers.hosted.provider import HostedProvider, chat_messages
from zephyrctl.providers.hosted.reasoning import split_thinking

_VERSION = "2026-10-21"
"""The version of the API that the SDK asks for, and that its types describe."""
_CUT = ("max_tokens", "model_context_window_exceeded")
_OPEN = ("", "pause_turn")
"""Stop reasons that leave open whether there is more to come; what is there counts as cut."""


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
        """A message.

        Raises Retryable: `bad_envelope` where there is no list of content blocks, no answer in it or a call of a
        tool, `server_error` where the reply tells of an error.
        """
        document = json_object(raw)
        check_error(document)
        blocks = document.get("content")
        if not isinstance(blocks, list):
            raise Retryable("bad_envelope", "the reply holds no content", maybe_billed=True)
        known = [block for block in blocks if isinstance(block, dict)]
        thought, text = split_thinking(text_of(*(b.get("text") for b in known if b.get("type") == "text")))
        apart = text_of(*(b.get("thinking") for b in known if b.get("type") == "thinking"))
        thinking = any(b.get("type") in ("thinking", "redacted_thinking") for b in known)
        finish = name_of(document.get("stop_reason"))
        check_end(finish, text, told=finish not in _OPEN)
        tokens = _tokens(document.get("usage"))
        return Reading(
            text=text,
            outcome=outcome_of(
                text,
                refused=finish == "refusal",
                cut=finish in _CUT or finish in _OPEN,
                reasoned=thinking or bool(thought) or bool(tokens and tokens.reasoning),
            ),
            finish_reason=finish,
            served_model=name_of(document.get("model")),
            tokens=tokens,
            reasoning=apart or thought,
        )

    def _headers(self, key: str | None) -> dict[str, str]:
        return {**super()._headers(key), "anthropic-version": _VERSION}


def _tokens(usage: object) -> Tokens | None:
    """Tokens read from or written to the prompt cache are not part of `input_tokens` there; here they are."""
    found = tokens_of(usage, "input_tokens", "output_tokens")
    if found is None or not isinstance(usage, dict):
        return None
    cached = count(usage.get("cache_read_input_tokens"))
    written = count(usage.get("cache_creation_input_tokens"))
    return Tokens(
        found.prompt + cached + written,
        found.completion,
        cached=cached,
        cache_write=written,
        reasoning=detail(usage, "output_tokens_details", "thinking_tokens"),
    )
