"""Scripts: which mode meets which call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Script = str | Sequence[str] | Callable[[int, Mapping[str, Any]], str]
"""One mode for all calls; modes of the first calls, then `ok`; or a function of (times seen before, body)."""


def known_modes(script: Script) -> Sequence[str]:
    """The modes that a script names before anything is asked."""
    return [script] if isinstance(script, str) else () if callable(script) else script


class Progress:
    """How far a script is: calls treated, and how often each body was seen."""

    def __init__(self) -> None:
        self._treated = 0
        self._seen: Counter[str] = Counter()

    def next_mode(self, script: Script, identity: str, body: Mapping[str, Any]) -> str:
        """The mode of the next call. `identity` names the body."""
        number, self._treated = self._treated, self._treated + 1
        times, self._seen[identity] = self._seen[identity], self._seen[identity] + 1
        if isinstance(script, str):
            return script
        if callable(script):
            return script(times, body)
        return script[number] if number < len(script) else "ok"

    def seen(self, identity: str) -> int:
        """Calls with this body so far."""
        return self._seen[identity]
