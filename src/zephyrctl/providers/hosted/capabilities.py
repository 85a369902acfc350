"""What each family of models accepts, by a dated table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from zephyrctl.errors import UsageError

Takes = Literal["yes", "no", "unless_reasoning"]
"""`unless_reasoning` = taken only while the reasoning effort is `none`."""
_TABLE = Path(__file__).with_name("capabilities.yaml")


@dataclass(frozen=True)
class Accepts:
    """Which settings a model takes, and in which form.

    `one_of` = temperature and top_p, but not both; `limit` = the field for the limit of output tokens; `n` = several
    answers to one request (for information: here each draw is a request of its own); `system` = the role that
    instructions take; `reasoning` = whether it reasons before it answers; `efforts` = the values of reasoning
    effort; `default_effort` = the one it uses when none is named; `context` = tokens of input and output together,
    where known; `unsure` = read conservatively, for want of a source.
    """

    temperature: Takes = "yes"
    top_p: Takes = "yes"
    one_of: bool = False
    limit: str = "max_tokens"
    logprobs: Takes = "yes"
    n: bool = True
    seed: bool = True
    stop: Takes = "yes"
    schema: bool = True
    system: Literal["system", "developer", "none"] = "system"
    reasoning: Literal["none", "optional", "always"] = "optional"
    efforts: tuple[str, ...] = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
    default_effort: str | None = None
    api: Literal["chat", "responses", "messages"] = "chat"
    context: int | None = None
    unsure: bool = False


SERVER = Accepts()
"""A server that speaks Chat Completions and of whose models nothing is known: all that the API has."""
RESPONSES = Accepts(seed=False, stop="no", n=False, api="responses")
"""The same for one that speaks OpenAI's Responses."""
MESSAGES = Accepts(
    logprobs="no", n=False, seed=False, efforts=("low", "medium", "high", "xhigh", "max"), api="messages"
)
"""The same for one that speaks Anthropic's Messages."""


@dataclass(frozen=True)
class Retirement:
    """The day from which a vendor does not serve a model any more, and what to use instead."""

    on: date
    use: str


def accepted(vendor: str, model: str) -> Accepts | None:
    """What a vendor's model accepts, None for one that is not in the table.

    The longest family that the name begins with decides; a fine-tuned model (`ft:BASE:…`) is like its base.
    """
    families = _table()[vendor]["families"]
    name = _base(model)
    found = [f for f in families if name == f or name.startswith((f"{f}-", f"{f}@") if f[-1] != "." else f)]
    return _row(vendor, max(found, key=len)) if found else None


def retirement(vendor: str, model: str) -> Retirement | None:
    """When a vendor's model stops being served, None where no day is known."""
    return _retired(vendor).get(_base(model))


def nearest(vendor: str, model: str) -> list[str]:
    """Names in the table that resemble one which is not."""
    names = [name for name in _table()[vendor]["families"] if not name.endswith(".")]
    return get_close_matches(_base(model), names, n=3, cutoff=0.4)


def table_date() -> date:
    """The day on which the table was made."""
    made: date = _table()["date"]
    return made


def overridden(accepts: Accepts, given: Mapping[str, bool | str], where: str) -> Accepts:
    """What the models of a named endpoint accept, with what the project file says of them.

    Raises UsageError for a name or a value that there is not.
    """
    for name, value in given.items():
        if name not in _CHOICES:
            near = get_close_matches(name, _CHOICES, n=1)
            hint = f"did you mean {near[0]}?" if near else "it has " + ", ".join(_CHOICES)
            raise UsageError(f"{where}: accepts has no '{name}'", hint=hint)
        accepts = replace(accepts, **{name: _value(name, value, where)})
    return accepts


_TAKES = ("yes", "no", "unless_reasoning")
_TRUTH = ("true", "false")
_ANY = ()
_CHOICES: dict[str, tuple[str, ...]] = {
    "temperature": _TAKES,
    "top_p": _TAKES,
    "one_of": _TRUTH,
    "limit": ("max_tokens", "max_completion_tokens"),
    "logprobs": _TAKES,
    "seed": _TRUTH,
    "stop": _TAKES,
    "schema": _TRUTH,
    "system": ("system", "developer", "none"),
    "reasoning": ("none", "optional", "always"),
    "efforts": _ANY,
    "default_effort": _ANY,
}
"""What the project file can say of an endpoint's models, and the values; `efforts` is a list with commas."""


def _value(name: str, value: Any, where: str) -> Any:
    choices = _CHOICES[name]
    if choices is _TAKES and isinstance(value, bool):
        value = "yes" if value else "no"
    if name == "efforts":
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts)
    good = isinstance(value, bool) if choices is _TRUTH else not choices or value in choices
    if not good:
        raise UsageError(f"{where}: accepts.{name} is {' or '.join(choices)}, got {value!r}")
    return value


def _base(model: str) -> str:
    return model.lower().removeprefix("ft:").split(":")[0]


@cache
def _table() -> dict[str, Any]:
    body: dict[str, Any] = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return body


@cache
def _row(vendor: str, family: str) -> Accepts:
    row = _table()[vendor]["families"][family]
    return replace(
        Accepts(), **{name: _value(name, v, family) if name in _CHOICES else v for name, v in row.items()}
    )


@cache
def _retired(vendor: str) -> dict[str, Retirement]:
    days = _table()[vendor]["retired"].items()
    return {name: Retirement(day, use) for day, uses in days for use, names in uses.items() for name in names}
