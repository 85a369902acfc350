"""Two editions side by side: the settings in which they differ, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from zephyrctl.config import StageConfig
from zephyrctl.editions.load import Edition

UNSETTLED = "(not settled)"
"""Stands for the settings of a stage that an edition says nothing about."""


@dataclass(frozen=True)
class Difference:
    """One field of one stage whose value differs; `first` and `second` are JSON-ready."""

    stage: str
    field: str
    first: Any
    second: Any


def settings(edition: Edition, config_class: type[StageConfig]) -> dict[str, Any]:
    """What the edition makes of a stage: its own values over the defaults, in the order of the config's fields.

    Runtime fields are left out unless the edition names them; so is what has neither value nor default.
    """
    section = edition.sections.get(config_class.stage, {})
    found: dict[str, Any] = {}
    for name, info in config_class.model_fields.items():
        default = info.get_default(call_default_factory=True, validated_data={})
        if name in section:
            found[name] = section[name] if section[name] is not None else default
        elif name not in config_class.fields_with_role("runtime") and default is not PydanticUndefined:
            found[name] = list(default) if isinstance(default, tuple) else default
    return found


def differences(
    first: Edition, second: Edition, classes: Mapping[str, type[StageConfig]]
) -> list[Difference]:
    """Where the editions' settings differ. `classes` maps a stage's name to its config, in the order to show. A stage
    that only one of them settles is one difference; one that neither does is none."""
    found = []
    for stage, config_class in classes.items():
        settled = [stage in edition.sections for edition in (first, second)]
        if not all(settled):
            if any(settled):
                words = [UNSETTLED if not one else "settled" for one in settled]
                found.append(Difference(stage, "(all)", *words))
            continue
        one, two = settings(first, config_class), settings(second, config_class)
        names = [name for name in config_class.model_fields if name in one or name in two]
        found += [
            Difference(stage, name, one.get(name), two.get(name))
            for name in names
            if one.get(name) != two.get(name)
        ]
    return found
