"""How an artifact is named: `name`, `name@v3`, `name:tag`, `name@sha256:1a2b3c4d`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from zephyrctl.errors import UsageError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_DIGEST = re.compile(r"sha256:[0-9a-f]{8,64}")
_GRAMMAR = (
    "names are a-z, 0-9, '.', '_' and '-', start with a letter or digit, have at most 63 characters, "
    "no '..', no ending '.lock'"
)


@dataclass(frozen=True, order=True)
class Ref:
    """One version of one artifact; `str(ref)` is `name@v3`."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@v{self.version}"


@dataclass(frozen=True)
class Asked:
    """A ref as typed: a name, and at most one of version, tag and (the beginning of a) digest."""

    name: str
    version: int | None = None
    tag: str | None = None
    digest: str | None = None


def is_name(text: str) -> bool:
    """Whether `text` can be the name of an artifact."""
    return bool(NAME.fullmatch(text)) and ".." not in text and not text.endswith(".lock")


def as_name(text: str, default: str) -> str:
    """`text` with all that a name cannot have replaced, at most 63 characters; `default` where nothing is left."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:63].rstrip("-._").removesuffix(".lock")
    return name if is_name(name) else default


def check_name(text: str) -> str:
    """`text` itself, when it can be the name of an artifact. Raises UsageError showing the grammar."""
    if not is_name(text):
        raise UsageError(f"{text!r:.80} cannot be the name of an artifact", hint=_GRAMMAR)
    return text


def check_tag(text: str) -> str:
    """`text` itself, when it can be a tag: the grammar of names, without what reads like a version (`v3`)."""
    if not is_name(text) or _VERSION.fullmatch(text):
        raise UsageError(f"{text!r:.80} cannot be a tag", hint=f"{_GRAMMAR}; 'v3' and the like are versions")
    return text


def version_number(text: str) -> int | None:
    """The number of a version folder's name (`v3` is 3), None for anything else."""
    match = _VERSION.fullmatch(text)
    return int(match.group(1)) if match else None


def parse_ref(text: str) -> Asked:
    """What `text` asks for. Raises UsageError, showing the grammar, when it is no ref."""
    head, at, tail = text.partition("@")
    if at:
        check_name(head)
        number = version_number(tail)
        if number is not None:
            return Asked(head, version=number)
        if _DIGEST.fullmatch(tail):
            return Asked(head, digest=tail)
        raise UsageError(
            f"{text!r:.80}: after '@' comes a version or a digest",
            hint=f"for example {head}@v1, or {head}@sha256: and at least 8 hex digits; a tag is {head}:TAG",
        )
    head, colon, tail = text.partition(":")
    if colon:
        return Asked(check_name(head), tag=check_tag(tail))
    return Asked(check_name(head))


def looks_like_ref(text: str) -> bool:
    """Whether `text` reads as a ref (so that a path of that look has to be typed `./…`)."""
    try:
        parse_ref(text)
    except UsageError:
        return False
    return True
