"""Shapes of models that are often planned for before their files are at hand, from a small table in the package."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from zephyrctl.errors import RefNotFound
from zephyrctl.training.footprint import Shape, shape_of


def known_shape(name: str) -> Shape:
    """The shape of the model of that Hub name (with or without the owner, in any case).

    Raises RefNotFound where the table does not have it.
    """
    wanted = name.removeprefix("hf://").partition("@")[0].lower()
    for known, config in _table().items():
        if wanted in (known.lower(), known.lower().partition("/")[2]):
            return shape_of(config)
    raise RefNotFound(
        f"the shape of '{name}' is not known here",
        hint="--init FOLDER with its config.json (weights are not needed to plan), or one of: "
        + ", ".join(_table()),
    )


@cache
def _table() -> dict[str, dict[str, Any]]:
    import yaml

    text = files("zephyrctl.training").joinpath("known_shapes.yaml").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return table
