"""A run planned on the command line, as on a laptop for machines that are elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from conftest import Shell

PAPER = ("sft", "--edition", "zephyr-7b/paper", "--lengths", "lengths.npy", "--dry-run", "--json")


def planned(shell: Shell, *words: str) -> dict[str, Any]:
    done = shell(*words)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_the_papers_sft_from_its_lengths_alone(shell: Shell, tmp_path: Path) -> None:
    """As many rows as the paper trains on, of the same mean length; drawn skewed, then scaled to that mean."""
    drawn = np.random.default_rng(1).gamma(3.0, 1.0, 207_865)
    lengths = np.maximum(1, np.rint(drawn * (1372 / drawn.mean()))).astype(np.int64)
    np.save(tmp_path / "lengths.npy", lengths)
    assert lengths.mean() == pytest.approx(1372, abs=0.5)
    found = planned(shell, *PAPER, "--for-hardware", "16xA100-80GB")
    kept = np.minimum(lengths, 2048)
    assert (found["data"]["rows"], found["data"]["tokens"]) == (207_865, kept.sum())
    assert found["data"]["cut"] == (lengths > 2048).sum()
    packs, least = found["data"]["sequences"], math.ceil(kept.sum() / 2048)
    assert least <= packs <= 1.01 * least
    assert found["steps"]["steps"] == math.ceil(packs / 512)
    assert (found["engine"]["name"], found["engine"]["processes"]) == ("zero3", 16)
    assert found["memory"]["device"] < 0.92 * 80e9
    assert found["missing"] == []
    wrapped = planned(shell, *PAPER, "--for-hardware", "16xA100-80GB", "--set", "packing=wrapped")
    assert wrapped["data"]["tokens"] == lengths.sum()
    assert wrapped["steps"]["steps"] == math.ceil(math.ceil(lengths.sum() / 2048) / 512) == 272
    assert [path.name for path in tmp_path.iterdir()] == ["lengths.npy"], "planning writes nothing"


def test_on_this_machine_what_is_missing_is_told_and_is_no_error(shell: Shell, tmp_path: Path) -> None:
    np.save(tmp_path / "lengths.npy", np.full(3000, 1372))
    found = planned(shell, *PAPER)
    assert found["hardware"]
    assert found["steps"]["steps"] == math.ceil(3000 / 512)


@pytest.mark.parametrize(("word", "recomputed"), [("on", True), ("off", False)])
def test_hints_can_be_typed_as_they_stand(shell: Shell, tmp_path: Path, word: str, recomputed: bool) -> None:
    """YAML reads `on` and `off` as truths."""
    np.save(tmp_path / "lengths.npy", np.full(3000, 1372))
    found = planned(shell, *PAPER, "--for-hardware", "16xA100-80GB", "--set", f"recompute={word}")
    assert found["engine"]["recompute"] is recomputed


def test_several_machines_are_planned_for_before_they_have_an_address(shell: Shell, tmp_path: Path) -> None:
    np.save(tmp_path / "lengths.npy", np.full(3000, 1372))
    found = planned(shell, *PAPER, "--for-hardware", "16xA100-80GB", "--num-machines", "2")
    assert found["engine"]["machines"] == 2
    assert shell("sft", "--init", "sandbox", "--num-machines", "2").code == 2


def test_other_machines_are_not_forgotten_in_silence(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    done = shell("sft", "--init", "sandbox", "--data", "rows.jsonl", "--for-hardware", "8xH100", "--dry-run")
    assert done.code == 2
    assert "--for-hardware plans from --lengths" in done.err
