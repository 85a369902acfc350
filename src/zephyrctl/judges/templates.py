"""Prompt files shipped with the package: found, rendered in a limited sandbox, and named by their hash.

Foreign text reaches a template as a value only: it is put in once and never read as a template itself.
"""

import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


def source(package: str, path: str) -> str:
    """The text of a prompt file, such as `source("zephyrctl.judges", "rubrics/overall.md")`."""
    return files(package).joinpath(path).read_text(encoding="utf-8")


def digest(package: str, path: str) -> str:
    """`sha256:` and the hash of a prompt file, for manifests and step keys."""
    return "sha256:" + hashlib.sha256(source(package, path).encode()).hexdigest()


@cache
def _template(package: str, path: str) -> "Template":
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(source(package, path))


def render(package: str, path: str, **values: object) -> str:
    """The prompt file with its `{{ names }}` filled in. Raises jinja2.UndefinedError for a name without a
    value."""
    return _template(package, path).render(**values)
