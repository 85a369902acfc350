"""One stage's settings from all places.

The order is: command line > --config > named edition > project file > default edition (see `choose`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyrctl.config import STAGES, UNSET, Layer, StageConfig, build, load_yaml, unknown_key
from zephyrctl.editions.load import load
from zephyrctl.errors import ConfigError
from zephyrctl.project import Project

DEFAULT = "zephyr-7b/paper"
SANDBOX = "sandbox"

_LIMITS = ("concurrency", "rpm", "tpm")


@dataclass(frozen=True)
class Resolved:
    """A stage's settings; `label` names the edition and what was changed in it: `zephyr-7b/paper + lr`."""

    config: Any
    edition: str
    label: str
    origins: dict[str, str]


def resolve(
    cls: type[StageConfig],
    typed: Mapping[str, Any],
    *,
    config_file: Path | None = None,
    edition: str | None = None,
    project: Project | None = None,
    sandbox: bool = False,
    fallback: str = DEFAULT,
) -> Resolved:
    """The settings of one stage. `typed` holds what the command line says, None = not said;
    `sandbox` picks the sandbox's edition where none is named; `fallback` is the edition where neither the command line,
    the config file nor the project names one. The project's limits (concurrency, rates) stand under
    everything that names them for the stage.

    Raises ConfigError for unknown keys and bad values, RefNotFound for a config file that is not there.
    """
    project = project or Project()
    own, own_edition = _read(config_file, cls)
    named = edition or own_edition or (SANDBOX if sandbox else None)
    chosen = load(named or project.edition or fallback)
    section = chosen.sections.get(cls.stage, {})
    base, above = Layer(f"edition {chosen.name}", section), Layer(project.origin, _section(project, cls))
    layers = [_limits(project, cls), *([above, base] if named else [base, above])]
    layers += [Layer(str(config_file), own), Layer("the command line", typed)]
    built = build(cls, layers)
    changed = sorted(
        key for key, value in section.items() if _plain(getattr(built.config, key)) != _plain(value)
    )
    label = chosen.name + "".join(f" + {key}" for key in changed)
    return Resolved(built.config, chosen.name, label, built.origins)


def _section(project: Project, cls: type[StageConfig]) -> dict[str, Any]:
    section = project.stages.get(cls.stage, {})
    return {str(key).replace("-", "_"): value for key, value in section.items()}


def _limits(project: Project, cls: type[StageConfig]) -> Layer:
    """The project's limits as far as the stage has them."""
    values = {name: getattr(project, name) for name in _LIMITS if name in cls.model_fields}
    return Layer(project.origin, values)


def named_edition(
    cls: type[StageConfig], config_file: Path | None, edition: str | None, project: Project
) -> str | None:
    """The edition that is named for a stage, on the command line, in the config file or in the project; None = none is,
    so that it has to be chosen. Raises as `resolve` for the config file."""
    return edition or _read(config_file, cls)[1] or project.edition


def said(
    cls: type[StageConfig], typed: Mapping[str, Any], *, config_file: Path | None, project: Project
) -> dict[str, Any]:
    """What the command line, the config file and the project say of a stage, in their order and not yet checked: what
    can be known before an edition is chosen. Raises as `resolve` for the config file."""
    layers = (_section(project, cls), _read(config_file, cls)[0], typed)
    merged = {key: value for layer in layers for key, value in layer.items() if value is not None}
    return {key: value for key, value in merged.items() if value is not UNSET}


def _read(path: Path | None, cls: type[StageConfig]) -> tuple[dict[str, Any], str | None]:
    """This stage's part of a config file and the edition that it names; a flat file is one stage's fields."""
    if path is None:
        return {}, None
    body = load_yaml(path)
    edition = body.pop("edition", None)
    if edition is not None and not isinstance(edition, str):
        raise ConfigError(f"{path}: `edition` must be the name of an edition", hint="zephyrctl edition ls")
    if not any(key in STAGES for key in body):
        return body, edition
    for key in body:
        if key not in STAGES:
            raise unknown_key(key, [*STAGES, "edition"], str(path), "top level")
    section = body.get(cls.stage) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: section '{cls.stage}' must be a mapping of keys to values")
    return {str(key).replace("-", "_"): value for key, value in section.items()}, edition


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
