from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zephyrctl.artifacts.importing import import_source
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import BadRow, UsageError
from zephyrctl.events import Recorder
from zephyrctl.records import split_of

if TYPE_CHECKING:
    from conftest import Make


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(60)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def test_rows_are_split_by_their_prompt_and_the_shape_is_stated(store: Store, pairs: Path) -> None:
    heard = Recorder()
    result = import_source(Work(store, heard), str(pairs), "prefs", test_fraction=0.3)
    assert result.ref == "prefs@v1"
    artifact = store.resolve("prefs")
    assert artifact.splits() == ["train", "test"]
    for _, split, row in artifact.rows():
        assert split == split_of(row.prompt_id, 0.3)  # type: ignore[attr-defined]
    assert artifact.manifest.inputs[0].ref == str(pairs)
    assert artifact.manifest.model_extra == {"shape": "jsonl: prompt, chosen, rejected"}
    assert any("prompt, chosen, rejected" in text for text in heard.texts())


def test_the_same_file_is_imported_once_wherever_it_lies(store: Store, pairs: Path, tmp_path: Path) -> None:
    one = import_source(Work(store), str(pairs), "prefs")
    moved = pairs.rename(tmp_path / "moved.jsonl")
    two = import_source(Work(store), str(moved), "prefs")
    assert (two.ref, two.already) == (one.ref, True)
    assert import_source(Work(store), str(moved), "prefs", test_fraction=0.5).ref == "prefs@v2"
    assert import_source(Work(store), str(moved), "prefs", "others").ref == "others@v1"
    assert import_source(Work(store, again=True), str(moved), "prefs").ref == "prefs@v3"


def test_equal_rows_in_other_files_give_equal_digests(store: Store, pairs: Path, tmp_path: Path) -> None:
    one = import_source(Work(store), str(pairs), "prefs").artifact
    spaced = tmp_path / "spaced.jsonl"
    spaced.write_text(pairs.read_text(encoding="utf-8").replace("\n", "\n\n"), encoding="utf-8")
    two = import_source(Work(store), str(spaced), "prefs").artifact
    assert one is not None
    assert two is not None
    assert (one.ref.version, two.ref.version) == (1, 2)
    assert one.digest == two.digest


def test_bad_rows_fail_or_become_rejects(store: Store, pairs: Path) -> None:
    lines = pairs.read_text(encoding="utf-8").splitlines()
    lines[6] = "{"
    pairs.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(BadRow, match=r"pairs.jsonl:7"):
        import_source(Work(store), str(pairs), "prefs")
    assert store.names() == []
    artifact = import_source(Work(store), str(pairs), "prefs", on_bad_row="skip").artifact
    assert artifact is not None
    assert artifact.manifest.counts["rejects"] == {"bad row": 1}
    assert [r["where"] for r in artifact.rejects()] == [f"{pairs}:7"]
    assert artifact.count() == 59


def test_an_artifact_can_be_taken_over_with_its_splits(store: Store, make: Make, tmp_path: Path) -> None:
    made = make(world="sandbox")
    other = Store.open(tmp_path / "other")
    result = import_source(Work(other), str(made.path), "prefs")
    assert result.artifact is not None
    assert result.artifact.digest == made.digest
    assert result.artifact.world == "sandbox"


def test_a_dry_run_writes_nothing(store: Store, pairs: Path) -> None:
    heard = Recorder()
    result = import_source(Work(store, heard, dry_run=True), str(pairs), "prefs")
    assert (result.ref, result.artifact) == (None, None)
    assert not store.root.exists()
    assert any("60 rows" in text for text in heard.texts())


def test_what_cannot_be_imported(store: Store, pairs: Path) -> None:
    for kind in ("report", "dreams"):
        with pytest.raises(UsageError):
            import_source(Work(store), str(pairs), kind)
    with pytest.raises(UsageError):
        import_source(Work(store), "-", "model")
    with pytest.raises(UsageError):
        import_source(Work(store), str(pairs), "prefs", test_fraction=1.0)
    with pytest.raises(UsageError):
        import_source(Work(store), str(pairs), "prefs", "Not A Name")
