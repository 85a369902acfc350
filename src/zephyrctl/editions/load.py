"""Reading an edition: one YAML file with a section for each stage it settles."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from zephyrctl.errors import ConfigError


@dataclass(frozen=True)
class Edition:
    """A named set of settings. `sections` maps a stage's name to its fields; `brief` is one line, `about` tells what
    they repeat, from which source, and what they cannot."""

    name: str
    brief: str
    about: str
    sections: dict[str, dict[str, Any]]


def names() -> list[str]:
    """The editions that ship with the package, sorted."""
    return sorted(_walk(files("zephyrctl.editions"), ""))


def load(name: str) -> Edition:
    """The edition called `name`. Raises ConfigError with the nearest name."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        raise ConfigError(
            f"no edition '{name}'",
            hint=f"did you mean '{near[0]}'?" if near else "there are: " + ", ".join(names()),
        )
    import yaml

    body = yaml.safe_load(files("zephyrctl.editions").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    return Edition(name=name, brief=body.pop("brief"), about=body.pop("about"), sections=body)


def _walk(folder: Traversable, prefix: str) -> list[str]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.name.startswith("__"):
            found += _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            found.append(prefix + entry.name.removesuffix(".yaml"))
    return found
