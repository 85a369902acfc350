"""OpenAI's Chat Completions, and whatever else speaks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zephyrctl.money import Tokens
from zephyrctl.providers.base import (
    Ask,
    Reading,
    Retryable,
    TokenLogprob,
    clean_text,
    count,
    json_object,
    outcome_of,
)
from zephyrctl.providers.hosted.provider import HostedProvider, chat_messages
from zephyrctl.providers.hosted.reasoning import split_thinking


class OpenAIProvider(HostedProvider):
    """A chat model."""

    kind = "openai"
    endpoint = "/chat/completions"
    limits = ("max_completion_tokens", "max_tokens")

    def wire(self, ask: Ask) -> dict[str, Any]:
        """The body of a Chat Completions request."""
        fitted = self._fitted(ask)
        body: dict[str, Any] = {"model": self.model, "messages": chat_messages(ask, fitted.system)}
        if fitted.logprobs is not None:
            body["logprobs"] = True
        body[self.accepts.limit] = fitted.max_tokens
        if fitted.effort is not None:
            body["reasoning_effort"] = fitted.effort
        if fitted.schema is not None:
            schema = {
                "name": fitted.schema.name,
                "schema": dict(fitted.schema.definition),
                "strict": True,
            }
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if fitted.seed is not None:
            body["seed"] = fitted.seed
        if fitted.stop:
            body["stop"] = list(fitted.stop)
        if fitted.temperature is not None:
            body["temperature"] = fitted.temperature
        if fitted.logprobs:
            body["top_logprobs"] = fitted.logprobs
        if fitted.top_p is not None:
            body["top_p"] = fitted.top_p
        return body

    def read(self, raw: bytes) -> Reading:
        """A chat completion. Raises Retryable("bad_envelope") where there is no choice with a message."""
        document = json_object(raw)
        choices = document.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise Retryable("bad_envelope", "the reply holds no choice with a message", maybe_billed=True)
        finish = str(choice.get("finish_reason") or "")
        refusal = message.get("refusal")
        thought, text = split_thinking(clean_text(_content(message.get("content"))))
        apart = message.get("reasoning_content") or message.get("reasoning")
        reasoning = clean_text(apart) if isinstance(apart, str) else thought
        if not text and isinstance(refusal, str):
            text = clean_text(refusal)
        tokens = _tokens(document.get("usage"))
        return Reading(
            text=text,
            outcome=outcome_of(
                text,
                refused=bool(refusal),
                filtered=finish == "content_filter",
                cut=finish == "length",
                reasoned=bool(reasoning) or bool(tokens and tokens.reasoning),
            ),
            finish_reason=finish,
            served_model=str(document.get("model") or ""),
            tokens=tokens,
            reasoning=reasoning,
            logprobs=_logprobs(choice.get("logprobs")),
            fingerprint=str(document.get("system_fingerprint") or ""),
        )


def _content(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _tokens(usage: object) -> Tokens | None:
    if not isinstance(usage, dict):
        return None
    return Tokens(
        count(usage.get("prompt_tokens")),
        count(usage.get("completion_tokens")),
        cached=detail(usage, "prompt_tokens_details", "cached_tokens"),
        cache_write=detail(usage, "prompt_tokens_details", "cache_write_tokens"),
        reasoning=detail(usage, "completion_tokens_details", "reasoning_tokens"),
    )


def detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    """A count inside a group of a usage object; 0 where it is not there."""
    inner = usage.get(group)
    return count(inner.get(name)) if isinstance(inner, dict) else 0


def _logprobs(value: object) -> tuple[TokenLogprob, ...] | None:
    rows = value.get("content") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        return None
    return tuple(token_logprob(row) for row in rows if isinstance(row, dict))


def token_logprob(row: Mapping[str, Any]) -> TokenLogprob:
    """One token of an answer with its alternatives, as OpenAI's APIs report it."""
    top = row.get("top_logprobs")
    alternatives = tuple(_pair(r) for r in top if isinstance(r, dict)) if isinstance(top, list) else ()
    return TokenLogprob(*_pair(row), alternatives)


def _pair(row: Mapping[str, Any]) -> tuple[str, float]:
    value = row.get("logprob")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return clean_text(str(row.get("token") or "")), float(value) if number else float("-inf")  # type: ignore[arg-type]
