from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.manifest import InputRef

if TYPE_CHECKING:
    from conftest import Make


def front(artifact: Artifact) -> dict[str, Any]:
    """The YAML front matter of an artifact's card."""
    text = (artifact.path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    found = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_a_data_card_tells_the_hub_where_the_splits_are(make: Make) -> None:
    artifact = make(
        rejects=[{"where": "x", "reason": "tie", "detail": "", "row": {}}], note="a <b> note | here"
    )
    found = front(artifact)
    assert found["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "data/train-*"},
                {"split": "test", "path": "data/test-*"},
            ],
        },
        {"config_name": "rejects", "data_files": [{"split": "train", "path": "rejects/train-*"}]},
    ]
    assert found["tags"] == ["zephyrctl", "kind:prefs", "stage:trial", "world:real"]
    assert "&lt;b>" in (artifact.path / "README.md").read_text(encoding="utf-8")


def test_only_splits_and_configs_that_exist_are_named(make: Make) -> None:
    configs = front(make(test=0))["configs"]
    assert [c["config_name"] for c in configs] == ["default"]
    assert [f["split"] for f in configs[0]["data_files"]] == ["train"]


def test_a_model_card_names_its_base_and_says_when_it_is_the_sandbox(make: Make) -> None:
    base = InputRef(role="init", ref="sft-e1@v1", digest="sha256:" + "0" * 64, kind="model")
    artifact = make("dpo-e3", "model", files={"config.json": "{}"}, inputs=[base], world="sandbox")
    found = front(artifact)
    assert (found["library_name"], found["base_model"]) == ("transformers", "sft-e1@v1")
    text = (artifact.path / "README.md").read_text(encoding="utf-8")
    assert "not language models" in text
    assert "AutoModelForCausalLM" in text


def test_load_dataset_opens_a_version_unchanged(make: Make, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    artifact = make(
        rows=5, test=2, rejects=[{"where": "x:1", "reason": "tie", "detail": "", "row": {"a": 1}}]
    )
    before = sorted(p.relative_to(artifact.path) for p in artifact.path.rglob("*"))
    found = datasets.load_dataset(str(artifact.path), cache_dir=str(tmp_path / "cache"))
    ours = [row.model_dump() for _, split, row in artifact.rows("train")]
    assert [dict(row) for row in found["train"]] == ours
    assert found["train"].num_rows == 5
    assert found["test"].num_rows == 2
    rejects = datasets.load_dataset(str(artifact.path), "rejects", cache_dir=str(tmp_path / "cache"))
    assert rejects["train"][0]["reason"] == "tie"
    assert json.loads(rejects["train"][0]["row"]) == {"a": 1}
    assert sorted(p.relative_to(artifact.path) for p in artifact.path.rglob("*")) == before
    artifact.check()
