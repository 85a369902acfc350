"""Where API keys come from: the environment, or a file named there. A key is never part of a message."""

from __future__ import annotations

import os
from pathlib import Path

from zephyrctl.errors import AuthError
from zephyrctl.redact import register


def api_key(variable: str, example: str) -> str:
    """The key in `variable`, or in the file that `<variable>_FILE` names.

    Raises AuthError saying what to set.
    """
    text = os.environ.get(variable, "").strip()
    source = variable
    file_variable = f"{variable}_FILE"
    if not text and os.environ.get(file_variable):
        source = file_variable
        path = Path(os.environ[file_variable]).expanduser()
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise AuthError(f"{file_variable} names {path}, which cannot be read") from None
    if not text:
        raise AuthError(
            f"{variable} is not set", hint=f"export {variable}={example} (or {file_variable}=PATH)"
        )
    register(text)
    if any(not "!" <= character <= "~" for character in text):
        raise AuthError(
            f"the key in {source} holds a space, a line break or a letter no key has",
            hint=f"export {variable}={example}, on one line",
        )
    return text
