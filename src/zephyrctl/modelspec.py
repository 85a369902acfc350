"""One grammar for every model that a user names: `[provider:]name[?temperature=1&top_p=0.9]`.

Used by `--teacher --pool --init --model --judge`. Reading the text decides the provider; finding the model is
for others.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl

from zephyrctl.errors import UsageError

Where = Literal["sandbox", "openai", "anthropic", "folder", "artifact", "hub", "endpoint"]

_OPENAI = re.compile(r"^(gpt-|chatgpt-|o\d)")
_HUB = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_ARTIFACT = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}@(v\d+|sha256:[0-9a-f]{8,64})$")
_PARAMS: dict[str, type[float] | type[int] | type[str]] = {
    "temperature": float,
    "top_p": float,
    "max_tokens": int,
    "effort": str,
}
_RANGES = {"temperature": (0.0, math.inf), "top_p": (math.ulp(0.0), 1.0), "max_tokens": (1.0, math.inf)}
"""The least and the greatest value of a setting that is a number."""
PROVIDERS = ("openai", "anthropic", "local", "sandbox", "hf")


@dataclass(frozen=True)
class ModelSpec:
    """A model as the user named it. `text` is what was typed; `params` are sampling settings given with the name."""

    where: Where
    name: str
    text: str
    endpoint: str | None = None
    params: dict[str, float | int | str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What manifests and rows call this model: `sandbox:pool-a`, `openai:gpt-4`, `NAME:llama`, `ckpt/sft-e1`."""
        if self.where == "endpoint":
            return f"{self.endpoint}:{self.name}"
        return f"{self.where}:{self.name}" if self.where in ("sandbox", "openai", "anthropic") else self.name


def parse_model(text: str) -> ModelSpec:
    """The model that `text` names. Raises UsageError listing the possible readings when there is more than one."""
    body, _, query = text.strip().partition("?")
    params = _params(query, text)
    if not body:
        raise UsageError(
            "an empty model name", hint="for example: gpt-6.1-sol, claude-opus-5, ckpt/sft-e1, sandbox"
        )
    where, name, endpoint = _place(body)
    return ModelSpec(where, name, text.strip(), endpoint, params)


def _place(body: str) -> tuple[Where, str, str | None]:
    if body == "sandbox":
        return "sandbox", "teacher", None
    # the Hub knows one slash, so a path with more of them can only be a folder
    if body.startswith(("./", "/", "../", "ckpt/", "~")) or (":" not in body and body.count("/") > 1):
        return "folder", body, None
    if body.startswith("hf://"):
        return "hub", body.removeprefix("hf://").removeprefix("models/"), None
    head, colon, tail = body.partition(":")
    if colon and head in PROVIDERS:
        return _by_provider(head, tail, body)
    if _ARTIFACT.match(body):
        return "artifact", body, None
    if colon:
        if not tail or not head:
            raise UsageError(f"'{body}' names an endpoint but no model", hint="ENDPOINT:MODEL")
        return "endpoint", tail, head
    if _OPENAI.match(body):
        return "openai", body, None
    if body.startswith("claude-"):
        return "anthropic", body, None
    if _HUB.match(body):
        return "hub", body, None
    raise UsageError(
        f"cannot tell which model '{body}' is",
        hint=f"one of: ./{body} (a folder), {body}@v1 (an artifact), openai:{body}, anthropic:{body}, ENDPOINT:{body}",
    )


def _by_provider(head: str, tail: str, body: str) -> tuple[Where, str, str | None]:
    if not tail:
        raise UsageError(f"'{body}' names a provider but no model")
    if head == "local":
        return ("artifact" if _ARTIFACT.match(tail) else "folder"), tail, None
    if head == "hf":
        return "hub", tail, None
    places: dict[str, Where] = {"openai": "openai", "anthropic": "anthropic", "sandbox": "sandbox"}
    return places[head], tail, None


def _said(low: float, high: float) -> str:
    return f"at least {low:g}" if high == math.inf else f"above 0 and at most {high:g}"


def _params(query: str, text: str) -> dict[str, float | int | str]:
    params: dict[str, float | int | str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        kind = _PARAMS.get(key)
        if kind is None:
            raise UsageError(f"'{text}': unknown model setting '{key}'", hint="known: " + ", ".join(_PARAMS))
        try:
            params[key] = kind(value)
        except ValueError:
            raise UsageError(f"'{text}': {key} wants a number, got '{value}'") from None
        if not value:
            raise UsageError(f"'{text}': {key} has no value")
        low, high = _RANGES.get(key, (0, math.inf))
        number = params[key]
        if not isinstance(number, str) and not (low <= number <= high and math.isfinite(number)):
            raise UsageError(f"'{text}': {key}={value} is out of range", hint=f"{key} is {_said(low, high)}")
    return params
