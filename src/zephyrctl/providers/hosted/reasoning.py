"""Reasoning that a model writes into its answer, taken apart from the answer."""

from __future__ import annotations

import re

_OPEN = re.compile(r"\s*<think>", re.IGNORECASE)
_CLOSE = re.compile(r"</think>", re.IGNORECASE)
_CLOSE_ALONE = re.compile(r"</think>[ \t]*(?:\n|\Z)", re.IGNORECASE)
_ANY_OPEN = re.compile(r"<think>", re.IGNORECASE)


def split_thinking(text: str) -> tuple[str, str]:
    """`(reasoning, answer)` of a text that begins with `<think>…</think>`; ("", text) where it does not.

    A block that is never closed was cut off: all of it is reasoning. Some servers hold the opening tag in the
    prompt: a closing tag at the end of a line, with no opening one before it, ends the reasoning too. Tags inside
    an answer stay.
    """
    opened = _OPEN.match(text)
    if opened is None:
        alone = _CLOSE_ALONE.search(text)
        if alone is None or _ANY_OPEN.search(text, 0, alone.start()):
            return "", text
        return text[: alone.start()].strip(), text[alone.end() :].lstrip()
    closed = _CLOSE.search(text, opened.end())
    if closed is None:
        return text[opened.end() :].strip(), ""
    return text[opened.end() : closed.start()].strip(), text[closed.end() :].lstrip()
