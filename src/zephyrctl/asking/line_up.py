"""The dated table of current models, and whose of them can be asked here."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from datetime import date
from importlib import resources
from typing import TYPE_CHECKING

from zephyrctl.modelspec import parse_model

if TYPE_CHECKING:
    from zephyrctl.providers.site import Site


@dataclass(frozen=True)
class LineUp:
    """Models by vendor, the strongest first, as of a day."""

    date: date
    vendors: dict[str, tuple[str, ...]]


@functools.cache
def line_up() -> LineUp:
    """The table that comes with the package."""
    import yaml

    text = resources.files("zephyrctl.asking").joinpath("line_up.yaml").read_text(encoding="utf-8")
    table = yaml.safe_load(text)
    return LineUp(table["date"], {vendor: tuple(names) for vendor, names in table["vendors"].items()})


def with_keys(site: Site) -> list[str]:
    """The vendors of the line-up whose key is set, in the table's order; asks nobody.

    Raises AuthError for a key that is set and cannot be one.
    """
    from zephyrctl.providers.hosted.endpoints import VENDORS
    from zephyrctl.providers.registry import check_key

    found = []
    for vendor, names in line_up().vendors.items():
        variable = VENDORS[vendor].key_variable
        if any(os.environ.get(name, "").strip() for name in (variable, f"{variable}_FILE")):
            check_key(parse_model(f"{vendor}:{names[0]}"), site)
            found.append(vendor)
    return found


def key_variables() -> list[str]:
    """The variables that hold the vendors' keys."""
    from zephyrctl.providers.hosted.endpoints import VENDORS

    return [VENDORS[vendor].key_variable for vendor in line_up().vendors]
