"""`dpo` asks the reference once: what its word is shared by, what asks anew, and what is not believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import StageRejected
from zephyrctl.events import Recorder
from zephyrctl.stages.dpo.config import DpoConfig
from zephyrctl.stages.dpo.run import run
from zephyrctl.training import loop

FAST: dict[str, Any] = {
    "lr": 1e-3, "warmup": 0.0, "batch_size": 8, "max_length": 96, "max_steps": 1, "dtype": "fp32",
}  # fmt: skip


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"say {n}", "chosen": f"{n} it is", "rejected": f"not {n}"} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def dpo(tiny: Path, pairs: Path, tmp_path: Path) -> Any:
    """Trains with some settings; gives what came out and all that was said."""

    def trained(**settings: Any) -> tuple[Artifact, str]:
        heard = Recorder()
        config = DpoConfig(init=str(tiny), data=[str(pairs)], **{**FAST, **settings})
        made = run(config, Work(Store.open(tmp_path / "artifacts"), heard)).artifact
        assert made is not None
        return made, " ".join(heard.texts())

    return trained


def _asked(made: tuple[Artifact, str]) -> tuple[str, bool]:
    """The artifact with the reference's word, and whether the reference was asked for it."""
    artifact, said = made
    assert ("not asked again" in said) != ("the reference reads" in said)
    return (artifact.manifest.model_extra or {})["reference"]["ref"], "the reference reads" in said


def test_one_asking_serves_every_beta_loss_seed_and_adapter(dpo: Any) -> None:
    ref, fresh = _asked(dpo())
    assert fresh
    for settings in (
        {"loss": ["ipo", "hinge"], "loss_weights": [1.0, 0.1], "seed": 7, "max_steps": 2},
        {"beta": 0.5, "lora": True, "micro_batch": 1, "verify_ref": 4},
    ):
        assert _asked(dpo(**settings)) == (ref, False), settings
    for settings in ({"dtype": "bf16"}, {"max_length": 14, "max_prompt_length": 8}):
        other, fresh = _asked(dpo(**settings))
        assert fresh, settings
        assert other != ref
    assert "reference" not in (dpo(loss=["simpo"], beta=2.0)[0].manifest.model_extra or {})


def test_a_word_that_the_reference_did_not_say_stops_the_run(
    dpo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = loop.write_reference

    def wrong(folder: Path, spoken: Any) -> None:
        chosen, rejected = spoken.train
        longest = max(range(len(chosen)), key=lambda row: -chosen[row])
        lifted = [one + 0.1 * (row == longest) for row, one in enumerate(chosen)]
        write(folder, replace(spoken, train=(lifted, rejected)))

    monkeypatch.setattr(loop, "write_reference", wrong)
    dpo()
    with pytest.raises(StageRejected, match="differ from recomputed ones") as caught:
        dpo(beta=0.3, verify_ref=99)
    assert "zephyrctl artifacts rm" in str(caught.value.hint)
