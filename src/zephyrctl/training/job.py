"""One training run as data: what a process needs to know to take part in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyrctl.events import Emit, silent
from zephyrctl.losses import LossSpec
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.packing import PackedRows, PackPlan
from zephyrctl.training.plan import Plan
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.token_rows import PairRows, SftRows

Deliver = Callable[[str, Path], None]
"""Told by the leading process that a folder is complete: `reference`, `epoch<k>` or `final`."""

READY = "ready.json"


def keep_nothing(name: str, folder: Path) -> None:
    """A `Deliver` that leaves folders where they are."""


@dataclass(frozen=True)
class Job:
    """What to train. `train` and `test` are token rows; `loss` is None for SFT; `scratch` outlives a stopped run."""

    task: str
    config: TrainingConfig
    init: Path
    train: Sequence[Any]
    test: Sequence[Any]
    plan: Plan
    scratch: Path
    choice: EngineChoice = field(default_factory=EngineChoice)
    loss: LossSpec | None = None
    reference: Path | None = None
    """A folder with the reference's log-probabilities of `train` and `test`, where they are known already."""
    verify_ref: int = 0
    """How many pairs the reference is asked again about, where its word was known."""
    base: tuple[str, str] = ("", "")
    """Name and digest of the starting model, as an adapter names it."""
    emit: Emit = silent
    deliver: Deliver = keep_nothing
    mark: str = ""
    """Tells this preparation of the job from any other: processes of several machines compare it."""
    name: str = "run"
    """What the run is called where it is watched."""
    runs: Path | None = None
    """Where trackers put what stays on this machine."""
    stop_at: int | None = None
    """The step whose checkpoint is all that is wanted: training ends there and delivers no model."""

    def save(self, folder: Path) -> None:
        """Writes the job into `folder`; `ready.json` comes last."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / READY).unlink(missing_ok=True)
        _write_rows(self.train, folder / "train")
        _write_rows(self.test, folder / "test")
        body = {
            "task": self.task,
            "config": self.config.model_dump(mode="json", include=set(TrainingConfig.model_fields)),
            "init": str(self.init.absolute()),
            "plan": dataclasses.asdict(self.plan),
            "choice": dataclasses.asdict(self.choice),
            "loss": None if self.loss is None else self.loss.as_dict(),
            "reference": None if self.reference is None else str(self.reference),
            "verify_ref": self.verify_ref,
            "base": list(self.base),
            "mark": self.mark,
            "name": self.name,
            "runs": None if self.runs is None else str(self.runs.absolute()),
            "stop_at": self.stop_at,
        }
        partial = folder / (READY + ".partial")
        partial.write_text(json.dumps(body, indent=1), encoding="utf-8")
        partial.replace(folder / READY)

    @classmethod
    def load(cls, folder: Path, *, emit: Emit, deliver: Deliver) -> Job:
        """The job that `save` wrote, its rows mapped from disk. `scratch` is the folder above."""
        body = json.loads((folder / READY).read_text(encoding="utf-8"))
        return cls(
            task=body["task"],
            config=TrainingConfig(**body["config"]),
            init=Path(body["init"]),
            train=_read_rows(folder / "train", pairs=body["loss"] is not None),
            test=_read_rows(folder / "test", pairs=body["loss"] is not None),
            plan=Plan(**body["plan"]),
            scratch=folder.parent,
            choice=EngineChoice(**body["choice"]),
            loss=None if body["loss"] is None else LossSpec.from_dict(body["loss"]),
            reference=None if body["reference"] is None else Path(body["reference"]),
            emit=emit,
            deliver=deliver,
            verify_ref=body["verify_ref"],
            base=tuple(body["base"]),
            mark=body["mark"],
            name=body["name"],
            runs=None if body["runs"] is None else Path(body["runs"]),
            stop_at=body["stop_at"],
        )


_PACKS = "packs.json"


def _write_rows(rows: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _PACKS).unlink(missing_ok=True)
    if isinstance(rows, PackedRows):
        (folder / _PACKS).write_text(rows.plan.to_json(), encoding="utf-8")
        rows = rows.rows
    rows.save(folder)


def _read_rows(folder: Path, *, pairs: bool) -> Any:
    rows: Any = (PairRows if pairs else SftRows).open(folder)
    if (folder / _PACKS).is_file():
        return PackedRows(rows, PackPlan.from_json((folder / _PACKS).read_text(encoding="utf-8")))
    return rows
