"""What a run writes down: metrics that a second run repeats bit for bit, and speeds that it does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
BEFORE = "before.json"
"""In checkpoints only: what was measured before the first step, so that a resumed run compares with the same."""


class Journal:
    """The metric rows (`step`, `epoch`, `loss`, `lr`, …) and timing rows of a run, in order.

    `before` holds JSON-ready values that were settled before the first step.
    """

    def __init__(self) -> None:
        self.metrics: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []
        self.before: dict[str, Any] = {}

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
        """Writes all of it into `folder`."""
        for name, text in self.texts().items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / BEFORE).write_text(json.dumps(self.before, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Journal:
        """The journal that `save` wrote into `folder`."""
        journal = cls()
        for name, rows in ((METRICS, journal.metrics), (TIMING, journal.timing)):
            rows += [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        before = folder / BEFORE
        if before.is_file():  # a checkpoint of an earlier version has none
            journal.before = json.loads(before.read_text(encoding="utf-8"))
        return journal

    def last(self, key: str) -> Any:
        """The value of `key` in the newest metric row that has it; None where none has."""
        return next((row[key] for row in reversed(self.metrics) if key in row), None)

    def with_key(self, key: str) -> list[dict[str, Any]]:
        """The metric rows that have `key`, in order."""
        return [row for row in self.metrics if key in row]
