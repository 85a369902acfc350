"""OpenAI's Responses, for the models that Chat Completions does not serve."""

from __future__ import annotations

from collections.abc import Iterator
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
from zephyrctl.providers.hosted.openai import detail, token_logprob
from zephyrctl.providers.hosted.provider import HostedProvider, chat_messages
from zephyrctl.providers.hosted.reasoning import split_thinking


class ResponsesProvider(HostedProvider):
    """A model asked through Responses. Nothing is stored at the provider: each request holds all it needs."""

    kind = "openai"
    endpoint = "/responses"
    limits = ("max_output_tokens",)

    def wire(self, ask: Ask) -> dict[str, Any]:
        """The body of a Responses request."""
        fitted = self._fitted(ask)
        body: dict[str, Any] = {"model": self.model}
        if fitted.logprobs is not None:
            body["include"] = ["message.output_text.logprobs"]
        body["input"] = chat_messages(ask, fitted.system)
        body["max_output_tokens"] = fitted.max_tokens
        if fitted.effort is not None:
            body["reasoning"] = {"effort": fitted.effort}
        body["store"] = False
        if fitted.temperature is not None:
            body["temperature"] = fitted.temperature
        if fitted.schema is not None:
            schema = {
                "name": fitted.schema.name,
                "schema": dict(fitted.schema.definition),
                "type": "json_schema",
                "strict": True,
            }
            body["text"] = {"format": schema}
        if fitted.logprobs:
            body["top_logprobs"] = fitted.logprobs
        if fitted.top_p is not None:
            body["top_p"] = fitted.top_p
        return body

    def read(self, raw: bytes) -> Reading:
        """A response. Raises Retryable("bad_envelope") where there is no list of output items, and
        Retryable("server_error") where the model itself failed."""
        document = json_object(raw)
        items = document.get("output")
        if not isinstance(items, list):
            raise Retryable("bad_envelope", "the reply holds no output", maybe_billed=True)
        status = str(document.get("status") or "")
        if status in ("failed", "cancelled"):
            raise Retryable("server_error", f"the response is {status}", maybe_billed=True)
        parts = list(_parts(items, "message", "content"))
        written = clean_text("".join(_text(p) for p in parts if p.get("type") == "output_text"))
        refusal = "".join(str(p.get("refusal") or "") for p in parts if p.get("type") == "refusal")
        thought, text = split_thinking(written)
        apart = [_text(p) for group in ("content", "summary") for p in _parts(items, "reasoning", group)]
        reasoning = clean_text("\n\n".join(part for part in apart if part)) or thought
        why = document.get("incomplete_details")
        finish = str(why.get("reason") or status) if isinstance(why, dict) else status
        tokens = _tokens(document.get("usage"))
        return Reading(
            text=text or clean_text(refusal),
            outcome=outcome_of(
                text,
                refused=bool(refusal),
                filtered=finish == "content_filter",
                cut=finish == "max_output_tokens",
                reasoned=bool(reasoning) or bool(tokens and tokens.reasoning),
            ),
            finish_reason=finish,
            served_model=str(document.get("model") or ""),
            tokens=tokens,
            reasoning=reasoning,
            logprobs=_logprobs(parts),
        )


def _parts(items: list[Any], kind: str, group: str) -> Iterator[dict[str, Any]]:
    for item in items:
        if isinstance(item, dict) and item.get("type") == kind and isinstance(item.get(group), list):
            yield from (part for part in item[group] if isinstance(part, dict))


def _text(part: dict[str, Any]) -> str:
    return str(part.get("text") or "")


def _tokens(usage: object) -> Tokens | None:
    if not isinstance(usage, dict):
        return None
    return Tokens(
        count(usage.get("input_tokens")),
        count(usage.get("output_tokens")),
        cached=detail(usage, "input_tokens_details", "cached_tokens"),
        cache_write=detail(usage, "input_tokens_details", "cache_write_tokens"),
        reasoning=detail(usage, "output_tokens_details", "reasoning_tokens"),
    )


def _logprobs(parts: list[dict[str, Any]]) -> tuple[TokenLogprob, ...] | None:
    lists = [part["logprobs"] for part in parts if isinstance(part.get("logprobs"), list)]
    rows = [row for rows in lists for row in rows if isinstance(row, dict)]
    return tuple(token_logprob(row) for row in rows) if rows else None
