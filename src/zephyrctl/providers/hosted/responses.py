"""OpenAI's Responses, for the models that Chat Completions does not serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zephyrctl.providers.base import (
    Ask,
    Reading,
    Retryable,
    TokenLogprob,
    json_object,
    name_of,
    outcome_of,
    text_of,
)
from zephyrctl.providers.hosted.faults import check_end, check_error
from zephyrctl.providers.hosted.openai import logprobs_of, tokens_of
from zephyrctl.providers.hosted.provider import HostedProvider, chat_messages
from zephyrctl.providers.hosted.reasoning import split_thinking

_ENDS = ("completed", "max_output_tokens", "content_filter")
"""Why a response ends. With another reason, or none, it is taken as cut."""
_TOOL_CALLS = ("function_call", "custom_tool_call")


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
        """A response.

        Raises Retryable: `bad_envelope` where there is no list of output items, no answer in it or a call of a
        tool, `server_error` where the model itself failed or is not ready.
        """
        document = json_object(raw)
        check_error(document)
        items = document.get("output")
        if not isinstance(items, list):
            raise Retryable("bad_envelope", "the reply holds no output", maybe_billed=True)
        status = name_of(document.get("status"))
        called = [i for i in items if isinstance(i, dict) and i.get("type") in _TOOL_CALLS]
        parts = list(_parts(items, "message", "content"))
        written = text_of(*(p.get("text") for p in parts if p.get("type") == "output_text"))
        refusal = text_of(*(p.get("refusal") for p in parts if p.get("type") == "refusal"))
        thought, text = split_thinking(written)
        groups = ("content", "summary")
        apart = [text_of(p.get("text")) for group in groups for p in _parts(items, "reasoning", group)]
        reasoning = "\n\n".join(part for part in apart if part) or thought
        why = document.get("incomplete_details")
        finish = name_of(why.get("reason") if isinstance(why, dict) else None) or status
        check_end("function_call" if called else status, text or refusal, told=finish in _ENDS)
        tokens = tokens_of(document.get("usage"), "input_tokens", "output_tokens")
        return Reading(
            text=text or refusal,
            outcome=outcome_of(
                text,
                refused=bool(refusal),
                filtered=finish == "content_filter",
                cut=finish != "completed",
                reasoned=bool(reasoning) or bool(tokens and tokens.reasoning),
            ),
            finish_reason=finish,
            served_model=name_of(document.get("model")),
            tokens=tokens,
            reasoning=reasoning,
            logprobs=_logprobs(parts),
        )


def _parts(items: list[Any], kind: str, group: str) -> Iterator[dict[str, Any]]:
    for item in items:
        if isinstance(item, dict) and item.get("type") == kind and isinstance(item.get(group), list):
            yield from (part for part in item[group] if isinstance(part, dict))


def _logprobs(parts: list[dict[str, Any]]) -> tuple[TokenLogprob, ...] | None:
    lists = [part["logprobs"] for part in parts if isinstance(part.get("logprobs"), list)]
    rows = [row for rows in lists for row in rows]
    return logprobs_of(rows) if rows else None
