"""The log kept with a step: its notes and warnings as JSON lines, with everything that looks like a key taken
out.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from zephyrctl.events import Event, Note, Table, Warning_, plain
from zephyrctl.redact import redact


class WorkLog:
    """Appends to one file. Progress and metrics are left out: they are for the eye, and for metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note | Warning_ | Table):
            self.add(**plain(event))

    def add(self, **fields: object) -> None:
        """One line with the time and these fields. A log that cannot be written stops no work."""
        body = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **fields}
        line = redact(json.dumps(body, ensure_ascii=True, default=str))
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
