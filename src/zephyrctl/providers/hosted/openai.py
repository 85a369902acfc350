"""OpenAI's Chat Completions, and whatever else speaks them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from zephyrctl.money import Tokens
from zephyrctl.providers.base import (
    Ask,
    Reading,
    Retryable,
    TokenLogprob,
    count,
    counted,
    json_object,
    name_of,
    outcome_of,
    text_of,
)
from zephyrctl.providers.hosted.faults import check_end, check_error
from zephyrctl.providers.hosted.provider import HostedProvider, chat_messages
from zephyrctl.providers.hosted.reasoning import split_thinking

_CUT = ("length", "model_length")


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
        """A chat completion.

        Raises Retryable: `bad_envelope` where there is no choice with a message, no answer in it or a call of a
        tool, `server_error` where the reply tells of an error. Some servers give no finish reason.
        """
        document = json_object(raw)
        check_error(document)
        choices = document.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise Retryable("bad_envelope", "the reply holds no choice with a message", maybe_billed=True)
        check_error(choice)
        finish = name_of(choice.get("finish_reason"))
        refusal = message.get("refusal")
        thought, text = split_thinking(_content(message.get("content")))
        apart = message.get("reasoning_content") or message.get("reasoning")
        reasoning = text_of(apart) if isinstance(apart, str) else thought
        text = text or text_of(refusal)
        check_end(finish, text, told=bool(finish))
        tokens = tokens_of(document.get("usage"), "prompt_tokens", "completion_tokens")
        return Reading(
            text=text,
            outcome=outcome_of(
                text,
                refused=bool(refusal),
                filtered=finish == "content_filter",
                cut=finish in _CUT,
                reasoned=bool(reasoning) or bool(tokens and tokens.reasoning),
            ),
            finish_reason=finish,
            served_model=name_of(document.get("model")),
            tokens=tokens,
            reasoning=reasoning,
            logprobs=_logprobs(choice.get("logprobs")),
            fingerprint=name_of(document.get("system_fingerprint")),
        )


def _content(content: object) -> str:
    if isinstance(content, list):
        return text_of(*(part.get("text") for part in content if isinstance(part, dict)))
    return text_of(content)


def tokens_of(usage: object, sent: str, made: str) -> Tokens | None:
    """The counts of a usage object whose fields for input and output are `sent` and `made`.

    None unless both are there: half a count would be a cost that is too low.
    """
    if not isinstance(usage, dict):
        return None
    prompt, completion = counted(usage.get(sent)), counted(usage.get(made))
    if prompt is None or completion is None:
        return None
    return Tokens(
        prompt,
        completion,
        cached=detail(usage, f"{sent}_details", "cached_tokens"),
        cache_write=detail(usage, f"{sent}_details", "cache_write_tokens"),
        reasoning=detail(usage, f"{made}_details", "reasoning_tokens"),
    )


def detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    """A count inside a group of a usage object; 0 where it is not there."""
    inner = usage.get(group)
    return count(inner.get(name)) if isinstance(inner, dict) else 0


def _logprobs(value: object) -> tuple[TokenLogprob, ...] | None:
    rows = value.get("content") if isinstance(value, dict) else None
    return logprobs_of(rows) if isinstance(rows, list) else None


def logprobs_of(rows: Sequence[object]) -> tuple[TokenLogprob, ...] | None:
    """The tokens of an answer with their alternatives, as OpenAI's APIs report them.

    None where one of them has no finite number: a list with a gap could pass for the whole answer.
    """
    try:
        return tuple(_token_logprob(row) for row in rows)
    except (ValueError, OverflowError):
        return None


def _token_logprob(row: object) -> TokenLogprob:
    token, logprob = _pair(row)
    top = row.get("top_logprobs") if isinstance(row, dict) else None
    return TokenLogprob(token, logprob, tuple(_pair(one) for one in top) if isinstance(top, list) else ())


def _pair(row: object) -> tuple[str, float]:
    """A token and its number. Raises ValueError or OverflowError where that is not finite."""
    value = row.get("logprob") if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("no log-probability")
    if not math.isfinite(value):
        raise ValueError("not finite")
    return text_of(row.get("token")), float(value)
