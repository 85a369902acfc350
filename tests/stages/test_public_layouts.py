"""Public data sets as they lie on the Hub go through the recipe, and nobody has to say what their columns are.

The rows are made here; files, splits, columns and nesting are those of ultrachat_200k, ultrafeedback_binarized and
UltraFeedback.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zephyrctl.artifacts.store import Store
from zephyrctl.cli.app import run
from zephyrctl.records import split_of

Shell = Callable[..., dict[str, Any]]

FEW = ["--max-steps", "2", "--batch-size", "4", "--max-length", "128", "--set", "dtype=fp32"]
MODELS = ("alpaca-7b", "falcon-40b-instruct", "gpt-4", "wizardlm-7b")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """`shell(ARGS)`: the document that `zephyrctl ARGS --json` prints, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> dict[str, Any]:
        capsys.readouterr()
        code = run([*args, "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        document: dict[str, Any] = json.loads(out)
        return document

    return call


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "artifacts")


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def turn(role: str, content: str) -> dict[str, str]:
    return {"content": content, "role": role}


def identity(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def ultrachat(folder: Path) -> Path:
    """`data/{train,test}_{sft,gen}-…parquet` with prompt, prompt_id, messages."""

    def row(n: int) -> dict[str, Any]:
        prompt = f"Tell me about the number {n}."
        said = [turn("user", prompt), turn("assistant", f"{n} follows {n - 1}.")]
        said += [turn("user", "And then?"), turn("assistant", f"Then comes {n + 1}.")]
        return {"prompt": prompt, "prompt_id": identity(prompt), "messages": said}

    parts = {
        "train_sft": range(24),
        "test_sft": range(24, 28),
        "train_gen": range(40, 46),
        "test_gen": range(46, 48),
    }
    for split, numbers in parts.items():
        parquet(folder / "data" / f"{split}-00000-of-00001-abc.parquet", [row(n) for n in numbers])
    (folder / "README.md").write_text("a card", encoding="utf-8")
    return folder


def binarized(folder: Path) -> Path:
    """`data/{train,test}_{prefs,sft,gen}-…parquet` with both answers as whole conversations, and their scores."""

    def row(n: int) -> dict[str, Any]:
        prompt = f"What is {n} and {n}?"
        sides = [[turn("user", prompt), turn("assistant", text)] for text in (f"It is {2 * n}.", "No idea.")]
        return {
            "prompt": prompt,
            "prompt_id": identity(prompt),
            "chosen": sides[0],
            "rejected": sides[1],
            "messages": sides[0],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        }

    same = row(30)
    same["rejected"] = same["chosen"]  # two models, one answer: the published files hold such pairs
    for variant in ("prefs", "sft", "gen"):
        rows = [row(n) for n in range(16)] + [same] * (variant == "prefs")
        parquet(folder / "data" / f"train_{variant}-00000-of-00001.parquet", rows)
        parquet(folder / "data" / f"test_{variant}-00000-of-00001.parquet", [row(n) for n in range(16, 20)])
    return folder


def ultrafeedback(folder: Path) -> Path:
    """One JSONL file for each source of prompts, with four completions, their annotations and scores."""

    def aspect(rating: str) -> dict[str, str]:
        return {"Rating": rating, "Rationale": "because"}

    def rich(rating: str) -> dict[str, Any]:
        return {"Type": ["1"], "Rationale": "so", **aspect(rating), "Rationale For Rating": "because"}

    def completion(n: int, place: int) -> dict[str, Any]:
        rating = str(place + 2 if place < 3 else 5)
        return {
            "model": MODELS[place],
            "principle": "helpfulness",
            "custom_system_prompt": "Be of help.",
            "annotations": {
                "instruction_following": aspect(rating),
                "honesty": aspect("N/A" if n % 5 == 0 else rating),
                "truthfulness": rich(rating),
                "helpfulness": rich(rating),
            },
            "response": f"Answer {place} to {n}.",
            "critique": "Could be better.",
            "fine-grained_score": float(rating),
            "overall_score": 2.0 + 2 * place,
        }

    for source, first in (("evol_instruct", 0), ("flan", 20)):
        rows: list[dict[str, Any]] = [
            {
                "source": source,
                "instruction": f"Explain task {n}.",
                "models": list(MODELS),
                "completions": [completion(n, place) for place in range(4)],
                "correct_answers": ["None"],
                "incorrect_answers": ["None"],
            }
            for n in range(first, first + 20)
        ]
        # the first completion of one row carries the known defect: a score of 1 published as 10
        defect = rows[3]["completions"][0]
        defect.update({"overall_score": 10.0, "fine-grained_score": 1.0})
        for annotation in defect["annotations"].values():
            annotation["Rating"] = "1"
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{source}.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_ultrachat_200k_is_dialogues_and_prompts_and_trains(
    shell: Shell, store: Store, tmp_path: Path
) -> None:
    ultrachat(tmp_path / "ultrachat_200k")
    made = shell("import", "./ultrachat_200k", "--as", "sft")
    assert made["shape"] == "folder (2 of 4 files, *_sft): messages"
    assert made["counts"]["splits"] == {"train": 24, "test": 4}
    rows: Any = list(store.resolve("sft-data").rows())
    assert rows[0][2].prompt_id == identity("Tell me about the number 0.")
    assert [m.role for m in rows[0][2].messages] == ["user", "assistant"] * 2
    asked = shell("import", "./ultrachat_200k", "--as", "prompts")
    assert asked["counts"]["splits"] == {"train": 6, "test": 2}
    model = shell("sft", "--init", "sandbox", "--data", "sft-data=0.5", *FEW)
    manifest = store.resolve(model["ref"]).manifest
    (share,) = (manifest.model_extra or {})["mixture"]
    assert (share["ref"], share["rows"], share["weight"]) == ("sft-data@v1", 28, 0.5)
    assert manifest.counts["rows"] + manifest.counts["test"]["rows"] == share["used"] < 28


def test_ultrafeedback_binarized_is_pairs_and_dialogues_and_trains(
    shell: Shell, store: Store, tmp_path: Path
) -> None:
    binarized(tmp_path / "ultrafeedback_binarized")
    made = shell("import", "./ultrafeedback_binarized", "--as", "prefs")
    assert made["shape"] == "folder (2 of 6 files, *_prefs): prompt, chosen, rejected"
    assert made["counts"]["splits"] == {"train": 16, "test": 4}
    assert made["counts"]["rejects"] == {"identical": 1}
    row: Any = next(row for _, _, row in store.resolve("prefs").rows())
    assert (row.prompt_id, row.score_chosen, row.score_rejected) == (identity("What is 0 and 0?"), 8.5, 3.0)
    assert [m.role for m in (*row.prompt, *row.chosen, *row.rejected)] == ["user", "assistant", "assistant"]
    dialogues = shell("import", "./ultrafeedback_binarized", "--as", "sft")
    assert dialogues["shape"] == "folder (2 of 6 files, *_sft): messages"
    model = shell("dpo", "--init", "sandbox", "--data", "prefs", *FEW)
    assert store.resolve(model["ref"]).manifest.counts["steps"] == 2


def test_raw_ultrafeedback_is_feedback_and_is_paired_and_trains(
    shell: Shell, store: Store, tmp_path: Path
) -> None:
    ultrafeedback(tmp_path / "UltraFeedback")
    made = shell("import", "./UltraFeedback", "--as", "feedback")
    assert "UltraFeedback" in made["shape"]
    assert made["counts"]["rows"] == 40
    stored: Any = store.resolve("feedback").rows()
    rows = {row.prompt[0].content: (split, row) for _, split, row in stored}
    assert all(split == split_of(row.prompt_id, 0.1) for split, row in rows.values())
    mended = rows["Explain task 3."][1].completions
    assert [c.overall for c in mended] == [1.0, 4.0, 6.0, 8.0]
    assert [c.model for c in mended] == list(MODELS)
    asked = shell("import", "./UltraFeedback", "--as", "prompts")
    assert asked["counts"]["rows"] == 40
    by_ref = shell("binarize")
    direct = shell("binarize", "--feedback", "./UltraFeedback", "--out", "straight")
    assert by_ref["counts"]["rows"] == direct["counts"]["rows"] == 40
    assert by_ref["content_digest"] == direct["content_digest"]
    pairs: Any = list(store.resolve("prefs").rows())
    assert {row.chosen_model for _, _, row in pairs} == {"wizardlm-7b"}
    model = shell("dpo", "--init", "sandbox", "--data", "prefs", *FEW)
    assert store.resolve(model["ref"]).manifest.counts["steps"] == 2


def test_sources_are_mixed_by_weight_and_each_stays_in_the_lineage(
    shell: Shell, store: Store, tmp_path: Path
) -> None:
    ultrachat(tmp_path / "ultrachat_200k")
    binarized(tmp_path / "ultrafeedback_binarized")
    shell("import", "./ultrachat_200k", "--as", "sft")
    mixed = ["--data", "sft-data=0.5", "--data", "./ultrafeedback_binarized=2"]
    model = shell("sft", "--init", "sandbox", *mixed, *FEW)
    manifest = store.resolve(model["ref"]).manifest
    inputs = [(i.role, i.ref) for i in manifest.inputs if i.role != "init"]
    assert inputs == [
        ("data", "sft-data@v1"), ("data", "./ultrafeedback_binarized"), ("mixture", "weights 0.5, 2"),
    ]  # fmt: skip
    assert manifest.inputs[1].digest == store.resolve("sft-data").digest
    chat, pairs = (manifest.model_extra or {})["mixture"]
    assert chat["used"] == chat["rows"] - chat["not_drawn"]
    assert (pairs["rows"], pairs["repeats"], pairs["used"]) == (20, 16, 36)
    assert manifest.counts["test"]["rows"] == 4 + chat["used"] - (manifest.counts["rows"] - 32)
    assert shell("sft", "--init", "sandbox", *mixed, *FEW)["already"]
    other = ["--data", "sft-data=0.5", "--data", "./ultrafeedback_binarized"]
    assert not shell("sft", "--init", "sandbox", *other, *FEW)["already"]
