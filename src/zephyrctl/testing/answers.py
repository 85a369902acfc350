"""What the loopback teacher says to a request of any of the three APIs, and what it counts for it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from zephyrctl.money import Tokens
from zephyrctl.sandbox.teacher import ROLES, reply

Finish = Literal["stop", "length", "refusal", "filtered"]
AnswerWith = Callable[[Mapping[str, Any]], str]

REASONING = "The question is read twice, then the parts are put together step by step."
REFUSAL = "I cannot help with that."
BIG_LINE_BYTES = 10_000_000
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_TOKEN = re.compile(r"\s*\S+|\s+\Z")
_ODD = "nul \x00 right-to-left \u202eabc\u202c zero\u200bwidth \ufeff"


@dataclass(frozen=True)
class Said:
    """An answer before it takes an API's form. `texts` holds one text per choice (`n`); a word is a token."""

    texts: tuple[str, ...]
    tokens: Tokens
    finish: Finish = "stop"
    reasoning: str = ""


def conversation(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of a request, whichever API it is for; the system prompt comes first."""
    turns = body.get("messages") or body.get("input") or []
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    system = body.get("system") or body.get("instructions")
    if system:
        turns = [{"role": "system", "content": system}, *turns]
    return [
        {"role": str(turn.get("role", "")), "content": _plain(turn.get("content", ""))}
        for turn in turns
        if isinstance(turn, dict)
    ]


def answer_text(body: Mapping[str, Any], draw: int = 0) -> str:
    """The sandbox teacher's answer to a request of any API; equal bodies get equal answers."""
    model = str(body.get("model", ""))
    schema = schema_of(body)
    text = reply(
        model if model in ROLES else "teacher",
        conversation(body),
        draw=draw,
        seed=int(body.get("seed") or 0),
        temperature=float(body.get("temperature") or 0.0),
    )
    if schema is None or text.startswith("{"):  # The sandbox's judge writes JSON itself where it is asked to.
        return text
    return json.dumps(filled(schema, text))


def say(mode: str, body: Mapping[str, Any], *, answer: AnswerWith | None = None, draw: int = 0) -> Said:
    """The answer in a mode. `answer` says the text instead of the sandbox; `draw` numbers equal requests."""
    name, _, form = mode.partition(":")
    choices = int(body.get("n") or 1)
    texts = tuple(answer(body) if answer else answer_text(body, draw + n) for n in range(choices))
    finish: Finish = "stop"
    limit = next((body[name] for name in _LIMITS if isinstance(body.get(name), int)), None)
    if limit is not None and any(len(tokens_of(text)) > limit for text in texts):
        texts, finish = tuple("".join(tokens_of(text)[:limit]) for text in texts), "length"
    if name == "length":
        texts, finish = tuple(text[: max(1, len(text) // 2)] for text in texts), "length"
    elif name in ("refusal", "filtered"):
        texts, finish = (REFUSAL,), name  # type: ignore[assignment]
    elif name in ("reasoning", "think_cut"):
        texts, finish = (f"<think>{REASONING}" if name == "think_cut" else "",), "length"
    elif name == "think":
        texts = tuple(f"<think>{REASONING}</think>\n\n{text}" for text in texts)
    texts = _odd(name, texts)
    reasoned = name in ("reasoning", "reasoned")
    return Said(
        texts,
        _tokens(name, body, texts, reasoned=reasoned),
        finish,
        REASONING if reasoned and form != "hidden" else "",
    )


def tokens_of(text: str) -> list[str]:
    """The text in tokens: words with the space before them."""
    return _TOKEN.findall(text)


def chances(text: str, alternatives: int) -> list[dict[str, Any]]:
    """Made-up log-probabilities of an answer's tokens, equal for equal text, in the form of Chat Completions."""
    rows = []
    for token in tokens_of(text):
        chosen = -hashlib.sha256(token.encode("utf-8", "replace")).digest()[0] / 256
        swapped = token.swapcase() if token.swapcase() != token else f"{token}~"
        names = [token, swapped, *(f"{token}~{n}" for n in range(2, alternatives))][:alternatives]
        top = [_chance(name, chosen - 2.0 * n) for n, name in enumerate(names)]
        rows.append({**_chance(token, chosen), "top_logprobs": top})
    return rows


def schema_of(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON schema that a request asks the answer to follow, in any API's form."""
    for holder, name in (("", "response_format"), ("text", "format"), ("output_config", "format")):
        inside = body.get(holder) if holder else body
        asked = inside.get(name) if isinstance(inside, Mapping) else None
        if isinstance(asked, Mapping) and asked.get("type") == "json_schema":
            schema = asked.get("json_schema", asked).get("schema")
            return schema if isinstance(schema, Mapping) else None
    return None


def filled(schema: Mapping[str, Any], text: str) -> Any:
    """The smallest value that a schema allows, with `text` wherever it wants free text."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: filled(part, text) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [filled(schema.get("items", {"type": "string"}), text)] * max(1, schema.get("minItems", 1))
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    return {"boolean": True, "null": None}.get(kind, text)


def _tokens(name: str, body: Mapping[str, Any], texts: tuple[str, ...], *, reasoned: bool) -> Tokens:
    prompt = sum(len(turn["content"].split()) for turn in conversation(body))
    hidden = len(REASONING.split()) if reasoned else 0
    written = 0 if name == "filtered" else sum(len(text.split()) for text in texts)
    cached = prompt // 2 if name == "cached" else 0
    return Tokens(prompt, written + hidden, cached=cached, reasoning=hidden)


def _odd(name: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    odd = {"empty": " \n", "surrogate": "half \ud800 pair", "nul": _ODD}.get(name)
    if name == "big_line":
        odd = "x" * BIG_LINE_BYTES
    return texts if odd is None else (odd,)


def _chance(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}


def _plain(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content or "")
