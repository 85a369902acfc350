"""The project file `zephyrctl.yaml` and the user's own file: places, keys' names and limits.

Neither holds a knob that changes a result except the stage sections of the project file, which `editions.resolve`
reads. The user's file (`$XDG_CONFIG_HOME/zephyrctl/config.yaml`, moved by ZEPHYRCTL_CONFIG) is read first; the
project's wins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from zephyrctl.config import STAGES, load_yaml, unknown_key
from zephyrctl.errors import ConfigError
from zephyrctl.modelspec import PROVIDERS
from zephyrctl.money import Price
from zephyrctl.records import explain

PROJECT_FILE = Path("zephyrctl.yaml")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PriceSection(_Section):
    """US dollars per million tokens."""

    input: float = Field(alias="in", ge=0)
    """Input tokens."""
    output: float = Field(alias="out", ge=0)
    """Output tokens, hidden reasoning included."""
    cached: float | None = Field(default=None, ge=0)
    """Input tokens read from the prompt cache; unset = as `in`."""
    batch: float = Field(default=0.5, ge=0, le=1)
    """What a batch call costs as a share of an online one."""

    def price(self, source: str) -> Price:
        """As the rest of the program uses it."""
        return Price(self.input, self.output, self.cached, batch_factor=self.batch, source=source)


class EndpointSection(_Section):
    """A server that speaks a known API, called by its name: `NAME:model`."""

    base_url: list[str] = Field(default_factory=list)
    """Its address, or several over which calls are balanced. Plain http is allowed here."""
    api: Literal["openai", "responses", "anthropic"] = "openai"
    """What it speaks: OpenAI's Chat Completions or Responses, or Anthropic's Messages."""
    key_env: str | None = None
    """The variable that holds its key (or, with _FILE added, a file with it); unset = no key is sent."""
    origin: str | None = None
    """What the ledger knows it by; unset = its name. Two names with one origin share their replies."""
    offline: bool = False
    """There is no way to it from here: requests are written down for `ledger batch export`."""
    price: PriceSection | None = None
    """What it costs; unset = not known (put 0 for a server of your own)."""
    rpm: int | None = Field(default=None, ge=1)
    """Requests per minute that it allows."""
    tpm: int | None = Field(default=None, ge=1)
    """Tokens per minute that it allows."""
    accepts: dict[str, bool | str] = Field(default_factory=dict)
    """What its models accept, where that differs from the API: `{seed: false, schema: true}`."""

    @field_validator("base_url", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class ModelSection(_Section):
    """What to take a model for that the table of capabilities does not know."""

    like: str
    """A model that the table knows and that accepts the same settings."""
    price: PriceSection | None = None
    """What it costs."""


class VllmSection(_Section):
    """A vLLM in an environment of its own that serves local models while a stage asks them."""

    command: list[str] = Field(default_factory=lambda: ["vllm"], min_length=1)
    """How it is started, without `serve`: `[/opt/vllm/bin/vllm]`."""
    gpus: list[int] | None = None
    """The GPUs to use, one server on each group of `tensor_parallel`; unset = all that are there."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs for one copy of the model."""
    args: list[str] = Field(default_factory=list)
    """More arguments for `vllm serve`."""
    startup_seconds: float = Field(default=600.0, gt=0)
    """How long it may take to load the model."""


class Project(_Section):
    """What the project file and the user's file say, taken together."""

    edition: str | None = None
    """The edition that stages start from."""
    store: str | None = None
    """The folder of the artifact store."""
    suites: str | None = None
    """The folder of the evaluation suites that prompts are compared with before money is spent."""
    max_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """What the whole project may spend, over all its steps."""
    concurrency: int | None = Field(default=None, ge=1)
    """Calls in flight at most."""
    rpm: int | None = Field(default=None, ge=1)
    """Requests per minute to each model."""
    tpm: int | None = Field(default=None, ge=1)
    """Tokens per minute to each model."""
    endpoints: dict[str, EndpointSection] = Field(default_factory=dict)
    """Servers by name."""
    models: dict[str, ModelSection] = Field(default_factory=dict)
    """Models that the table of capabilities does not know."""
    vllm: VllmSection | None = None
    """A vLLM for local models."""

    @field_validator("endpoints")
    @classmethod
    def _free_names(cls, value: dict[str, EndpointSection]) -> dict[str, EndpointSection]:
        taken = sorted(name for name in value if name in PROVIDERS)
        if taken:
            raise ValueError(f"'{taken[0]}' is the name of a provider; an endpoint needs another one")
        return value

    stages: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The stage sections, as written."""
    origin: str = "zephyrctl.yaml"
    """The file's name for messages."""


KEYS = tuple(name for name in Project.model_fields if name not in ("stages", "origin"))
_USER_KEYS = tuple(name for name in KEYS if name != "edition")


def load_project(path: Path | None = None, user: Path | None = None) -> Project:
    """The project at `path` (default ./zephyrctl.yaml) over the user's file; empty where neither is there.

    Raises ConfigError naming file and key.
    """
    path = path or PROJECT_FILE
    user = user or user_file()
    values: dict[str, Any] = {}
    if user.is_file():
        values = _checked(user, load_yaml(user), _USER_KEYS)
    body = load_yaml(path) if path.is_file() else {}
    values = _merged(values, _checked(path, body, (*KEYS, *STAGES)))
    stages = {name: values.pop(name) or {} for name in STAGES if name in values}
    for name, section in stages.items():
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: section '{name}' must be a mapping of keys to values")
    if os.environ.get("ZEPHYRCTL_MAX_USD"):
        values["max_usd"] = os.environ["ZEPHYRCTL_MAX_USD"]
    try:
        return Project(**values, stages=stages, origin=str(path))
    except ValidationError as error:
        raise ConfigError(
            f"{path if path.is_file() else user}: {explain(error)}",
            hint="docs/teachers.md shows every key of the project file",
        ) from None


def user_file() -> Path:
    """Where the user's own file is, whether or not it exists."""
    named = os.environ.get("ZEPHYRCTL_CONFIG")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "zephyrctl" / "config.yaml"


def _checked(path: Path, body: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    for key in body:
        if key not in known:
            raise unknown_key(key, list(known), str(path), "top level")
    return dict(body)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        before = result.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        result[key] = {**before, **value} if both and isinstance(before, dict) else value
    return result
