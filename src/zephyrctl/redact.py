"""No key in any text: known secrets and everything shaped like one are blanked."""

from __future__ import annotations

import os
import re

_SHORTEST = 6
_BLANK = "[redacted]"
_SHAPES = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai)[-_][A-Za-z0-9_*.\-]{6,}"
    r"|\bhf_[A-Za-z0-9]{8,}"
    r"|(?<=bearer )[A-Za-z0-9._~+/=\-]{6,}"
    r"|(?<=://)[^/\s@]+(?=@)",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(r"(_KEY|_TOKEN|_SECRET|PASSWORD)$")
_registered: set[str] = set()


def register(secret: str) -> None:
    """Remember a secret for the life of the process; texts shorter than 6 characters are ignored."""
    if len(secret) >= _SHORTEST:
        _registered.add(secret)


def redact(text: str) -> str:
    """The text without registered secrets, `*_API_KEY` values, `sk-…` keys, bearer tokens and userinfo."""
    secrets = _registered | {
        value.strip()
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value.strip()) >= _SHORTEST
    }
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _BLANK)
    return _SHAPES.sub(_BLANK, text)
