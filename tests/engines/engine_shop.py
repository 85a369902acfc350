"""What the tests of engines share: small data, a shop that runs stages on any engine, and curves to compare."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.events import Recorder
from zephyrctl.stages.dpo.config import DpoConfig
from zephyrctl.stages.dpo.run import run as dpo
from zephyrctl.stages.sft.config import SftConfig
from zephyrctl.stages.sft.run import run as sft
from zephyrctl.training import supervise

SETTINGS: dict[str, Any] = {
    "init": "sandbox", "lr": 3e-4, "batch_size": 8, "max_length": 96, "dtype": "fp32", "micro_batch": 2,
    "max_steps": 20,
}  # fmt: skip


@dataclass
class Shop:
    """A store and the data in it."""

    root: Path

    @property
    def store(self) -> Store:
        return Store.open(self.root / "artifacts")

    @property
    def dialogues(self) -> str:
        return str(self.root / "dialogues.jsonl")

    @property
    def pairs(self) -> str:
        return str(self.root / "pairs.jsonl")

    def sft(self, seen: Recorder | None = None, **changes: Any) -> Artifact:
        made = sft(
            SftConfig(**{**SETTINGS, "data": [self.dialogues], **changes}),
            Work(self.store, emit=seen or Recorder()),
        )
        assert made.artifact is not None
        return made.artifact

    def dpo(self, seen: Recorder | None = None, **changes: Any) -> Artifact:
        made = dpo(
            DpoConfig(**{**SETTINGS, "lr": 1e-4, "data": [self.pairs], **changes}),
            Work(self.store, emit=seen or Recorder()),
        )
        assert made.artifact is not None
        return made.artifact


def new_shop(root: Path) -> Shop:
    """Dialogues and pairs of various lengths."""
    dialogues = [
        {
            "messages": [
                {"role": "user", "content": f"say {n} " + "please " * (n % 7)},
                {"role": "assistant", "content": f"{n} it is" + " yes" * (n % 5)},
            ]
        }
        for n in range(60)
    ]
    pairs = [
        {"prompt": f"say {n}", "chosen": f"{n} it is", "rejected": f"not {n}" + " no" * (n % 4)}
        for n in range(60)
    ]
    for name, rows in (("dialogues", dialogues), ("pairs", pairs)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return Shop(root)


def curve(artifact: Artifact, name: str = "loss") -> list[float]:
    """A metric of every step."""
    lines = (artifact.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row[name] for row in map(json.loads, lines) if name in row]


def engine_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings that choose an engine over two processes here, skipping where it cannot run."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
        if shutil.which("g++") is None:
            pytest.skip("DeepSpeed on a CPU builds an extension with g++, which is not here")
    if name == "fsdp2":
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
        monkeypatch.setattr(supervise, "PROGRAM", (str(Path(__file__).parent / "fsdp_on_cpu.py"),))
    offload = name.endswith("-offload")
    return {"engine": name.removesuffix("-offload"), "num_processes": 2, "offload": offload}
