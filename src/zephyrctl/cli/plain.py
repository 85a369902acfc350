"""Text that is safe to print: whoever wrote it cannot drive the terminal with it."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Text without control and bidirectional characters, which must not drive a terminal; newlines and tabs stay."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co"})
