"""What a run writes down: metrics that a second run repeats bit for bit, and speeds that it does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"


class Journal:
    """The metric rows (`step`, `epoch`, `loss`, `lr`, …) and timing rows of a run, in order."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []

    def metric(self, row: Mapping[str, Any]) -> None:
        """Adds a row of reproducible numbers."""
        self.metrics.append(dict(row))

    def time(self, row: Mapping[str, Any]) -> None:
        """Adds a row of speeds and memory."""
        self.timing.append(dict(row))

    def texts(self) -> dict[str, str]:
        """File name to content, one JSON object per line."""
        return {
            METRICS: "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.metrics),
            TIMING: "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.timing),
        }

    def save(self, folder: Path) -> None:
        """Writes both files into `folder`."""
        for name, text in self.texts().items():
            (folder / name).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Journal:
        """The journal that `save` wrote into `folder`."""
        journal = cls()
        for name, rows in ((METRICS, journal.metrics), (TIMING, journal.timing)):
            rows += [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        return journal

    def last(self, key: str) -> Any:
        """The value of `key` in the newest metric row that has it; None where none has."""
        return next((row[key] for row in reversed(self.metrics) if key in row), None)
