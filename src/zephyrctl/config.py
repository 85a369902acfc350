"""Stage configs: frozen, unknown keys refused, every field either *identity*, *input* or *runtime*.

identity   what is made; enters the step key (the default)
input      a reference to something read; enters the step key as the digest of what was read, not as text
runtime    how it is made (concurrency, budget, processes, micro-batch, waits, notes); never enters the step key
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zephyrctl.errors import ConfigError, RefNotFound
from zephyrctl.records import explain

_MAX_YAML_BYTES = 1 << 20


def runtime(default: Any, **kwargs: Any) -> Any:
    """A field that says how a result is made and never changes what it is."""
    return Field(default, json_schema_extra={"role": "runtime"}, **kwargs)


def reads(default: Any, **kwargs: Any) -> Any:
    """A field that names something to read; the digest of what was read enters the step key."""
    return Field(default, json_schema_extra={"role": "input"}, **kwargs)


class StageConfig(BaseModel):
    """What every stage can be asked. Subclasses add their own fields and set the class variables."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stage: ClassVar[str]
    """The command's name, such as `gen-sft`; also the section of the stage in config files."""
    stage_version: ClassVar[int] = 1
    """Raised when equal settings make other bytes than before."""

    seed: int = 42
    """Seeds every random choice of the stage."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """What to do with an input row that cannot be used: stop and name it, or keep it among the rejects."""
    out: str | None = runtime(None)
    """The name of the artifact to make; each stage has its own default."""
    note: str | None = runtime(None)
    """A sentence kept in the manifest."""

    @classmethod
    def fields_with_role(cls, role: str) -> list[str]:
        """The names of the fields with role `identity`, `input` or `runtime`, in order."""
        return [name for name, info in cls.model_fields.items() if _role(info.json_schema_extra) == role]

    def identity(self) -> dict[str, Any]:
        """The identity fields as JSON-ready values."""
        return self.model_dump(mode="json", include=set(self.fields_with_role("identity")))


Config = TypeVar("Config", bound=StageConfig)


def _role(extra: object) -> str:
    return str(extra.get("role", "identity")) if isinstance(extra, dict) else "identity"


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return _CANONICAL.encode(value)


def digest_of(value: Any) -> str:
    """`sha256:` and the hash of a value's canonical JSON."""
    return "sha256:" + hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()


def step_key(config: StageConfig, input_digests: Mapping[str, str]) -> str:
    """64 hex digits that stand for 'this work': stage, its version, identity fields, digests of what is read."""
    return digest_of(
        {
            "stage": config.stage,
            "stage_version": config.stage_version,
            "config": config.identity(),
            "inputs": dict(input_digests),
        }
    ).removeprefix("sha256:")


@dataclass(frozen=True)
class Layer:
    """Settings from one place. `origin` is shown in messages: `--set`, `zephyrctl.yaml`, `edition sandbox`."""

    origin: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Built:
    """A stage's resolved settings, and for each field the layer that decided it (`default` where none did)."""

    config: StageConfig
    origins: dict[str, str] = field(default_factory=dict)


def build(cls: type[StageConfig], layers: Sequence[Layer]) -> Built:
    """The config that the layers make together; later layers win; None says nothing, `UNSET` leaves a setting open.

    Raises ConfigError naming the key, its origin and the nearest known key.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(cls.model_fields, "default")
    for layer in layers:
        for key, value in layer.values.items():
            if key not in cls.model_fields:
                raise unknown_key(key, list(cls.model_fields), layer.origin, cls.stage)
            if value is None:
                continue
            origins[key] = layer.origin
            if value is UNSET:
                if (
                    cls.model_fields[key].get_default(call_default_factory=True, validated_data={})
                    is not None
                ):
                    raise ConfigError(f"{cls.stage}: {key} cannot be null — set by {layer.origin}")
                values.pop(key, None)
            else:
                values[key] = value
    try:
        config = cls(**values)
    except ValidationError as error:
        first = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else ""
        origin = origins.get(first, "")
        raise ConfigError(
            f"{cls.stage}: {explain(error)}" + (f" — set by {origin}" if origin else ""),
            hint=f"zephyrctl {cls.stage} --help lists what can be set",
        ) from None
    return Built(config, origins)


def unknown_key(key: str, known: Sequence[str], origin: str, section: str) -> ConfigError:
    """The error for a key that no config has, with the nearest known one."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    guess = f"did you mean '{near[0]}'?" if near else "known keys: " + ", ".join(sorted(known))
    return ConfigError(f"unknown key '{key}' in {origin} (section {section})", hint=guess)


class Unset:
    """Stands for a setting typed as `null`: whatever another place says of it, it is left open."""


UNSET = Unset()


def parse_sets(pairs: Sequence[str]) -> dict[str, Any]:
    """`["lr=5e-7", "packing=false"]` as values, read as YAML scalars or lists; `null` is `UNSET`.

    Raises ConfigError for a pair without `=`.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {pair}: expected key=value")
        value = scalar(text)
        values[key.strip().replace("-", "_")] = UNSET if value is None else value
    return values


def scalar(text: str) -> Any:
    """A value as typed on a command line: YAML's reading, with `5e-7` as the number it is; nothing at all is an empty
    text."""
    import yaml

    if not text.strip():
        return ""
    try:
        value = _yaml(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value) if any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return value


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML's safe loader, to which a day (2024-07-26) is the text that it is."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def _yaml(text: str) -> Any:
    loader = _loader()(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from disk. Raises RefNotFound, or ConfigError naming the file, line and column."""
    import yaml

    if not path.is_file():
        raise RefNotFound(f"no such config file: {path}", hint="--config takes the path of a YAML file")
    if path.stat().st_size > _MAX_YAML_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_YAML_BYTES} bytes, which no config file is")
    try:
        text = path.read_text(encoding="utf-8")
        if "&" in text and any(isinstance(t, yaml.AliasToken) for t in yaml.scan(text)):
            raise ConfigError(f"{path}: YAML aliases are not accepted in config files")
        value = _yaml(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(value).__name__}")
    return {str(k).replace("-", "_") if not _is_stage(str(k)) else str(k): v for k, v in value.items()}


STAGES = ("gen-sft", "sft", "gen-prefs", "binarize", "dpo", "eval")


def _is_stage(key: str) -> bool:
    return key in STAGES
