"""What `sft` hands to the training that it shares with `dpo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.editions.samples import sample_dialogues
from zephyrctl.stages.sft import run as stage
from zephyrctl.stages.sft.config import SftConfig


@pytest.mark.parametrize(("packing", "cut"), [("none", True), ("best-fit", True), ("wrapped", False)])
def test_a_preview_shows_the_cut_that_training_makes(
    packing: Any, cut: bool, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "train", lambda config, work, method: method)
    work: Any = None
    method: Any = stage.run(SftConfig(packing=packing, max_length=64), work)
    rows = [row for row in sample_dialogues() if row[0] == "long answer"]
    [shown] = method.preview(rows, load_tokenizer(tiny))
    assert any(segment.cut for segment in shown.sides[0][1]) == cut
