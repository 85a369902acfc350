from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import BadRow, UsageError
from zephyrctl.events import Recorder
from zephyrctl.project import Project
from zephyrctl.records import split_of
from zephyrctl.stages.importing.config import ImportConfig
from zephyrctl.stages.importing.run import run


def import_source(work: Work, text: str, kind: str, name: str | None = None, **more: Any) -> StepResult:
    """What `zephyrctl import TEXT --as KIND --out NAME` does."""
    return run(ImportConfig(source=text, kind=kind, out=name, **more), work)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store.open(tmp_path / "artifacts")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def dialogue(asked: str, said: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(
        tmp_path / "pairs.jsonl",
        [{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(60)],
    )


def test_rows_are_split_by_their_prompt_and_the_shape_is_stated(store: Store, pairs: Path) -> None:
    heard = Recorder()
    result = import_source(Work(store, heard), str(pairs), "prefs", test_fraction=0.3)
    assert result.ref == "prefs@v1"
    artifact = store.resolve("prefs")
    assert artifact.splits() == ["train", "test"]
    for _, split, row in artifact.rows():
        assert split == split_of(row.prompt_id, 0.3)  # type: ignore[attr-defined]
    assert artifact.manifest.inputs[0].ref == str(pairs)
    extra = artifact.manifest.model_extra or {}
    assert extra["shape"] == "jsonl: prompt, chosen, rejected"
    assert extra["decontamination"]["suites"] == []
    assert "filters" not in artifact.manifest.counts
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


def test_an_artifact_can_be_taken_over_with_its_splits(store: Store, pairs: Path, tmp_path: Path) -> None:
    made = import_source(Work(store), str(pairs), "prefs").artifact
    assert made is not None
    other = Store.open(tmp_path / "other")
    result = import_source(Work(other), str(made.path), "prefs")
    assert result.artifact is not None
    assert result.artifact.digest == made.digest
    assert result.artifact.splits() == ["train", "test"]
    by_ref = import_source(Work(store), "prefs@v1", "prompts")
    assert by_ref.artifact is not None
    assert [(i.role, i.ref) for i in by_ref.artifact.manifest.inputs] == [("source", "prefs@v1")]


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
    with pytest.raises(ValidationError):
        import_source(Work(store), str(pairs), "prefs", test_fraction=1.0)
    with pytest.raises(UsageError):
        import_source(Work(store), str(pairs), "prefs", "Not A Name")
    with pytest.raises(UsageError, match="no filters for kind model"):
        import_source(Work(store), "./somewhere", "model", filters=["truecase"])
    with pytest.raises(UsageError, match="no filter 'truecass'"):
        import_source(Work(store), str(pairs), "prefs", filters=["truecass"])


PERSONA = "I am an AI language model and I do not have emotions or opinions."


def test_filters_drop_and_count_and_keep_what_they_drop(store: Store, tmp_path: Path) -> None:
    rows = [dialogue(f"question {n}?", f"Answer {n}.") for n in range(20)]
    path = write(tmp_path / "d.jsonl", [*rows, dialogue("How are you?", PERSONA), rows[3]])
    made = import_source(Work(store), str(path), "sft", filters=["persona", "exact-duplicates"]).artifact
    assert made is not None
    assert made.count() == 20
    assert made.manifest.counts["rejects"] == {"exact_duplicate": 1, "persona": 1}
    filters = made.manifest.counts["filters"]
    assert [filters[name]["seen"] for name in ("persona", "exact-duplicates")] == [22, 21]
    assert [i.ref for i in made.manifest.inputs if i.role == "filter"] == ["persona", "exact-duplicates"]
    dropped = {r["reason"]: r for r in made.rejects()}
    assert dropped["persona"]["where"] == f"{path}:21"
    assert json.loads(dropped["persona"]["row"])["messages"][1]["content"] == PERSONA
    whole = import_source(Work(store), str(path), "sft").artifact
    assert whole is not None
    assert whole.count() == 22
    assert whole.manifest.step_key != made.manifest.step_key


def test_truecasing_learns_first_and_gives_changed_rows_new_identities(store: Store, tmp_path: Path) -> None:
    good = [dialogue(f"Is Paris in France, case {n}?", f"Yes. Paris lies in France {n}.") for n in range(60)]
    bad = dialogue("tell me of paris", "Paris lies in france. it is large.")
    path = write(tmp_path / "d.jsonl", [bad, *good])
    made = import_source(Work(store), str(path), "sft", filters=["truecase"], test_fraction=0).artifact
    plain = import_source(Work(store), str(path), "sft", "plain", test_fraction=0).artifact
    assert made is not None
    assert plain is not None
    (first, *others), (before, *same) = ([row for _, _, row in a.rows()] for a in (made, plain))
    assert "France" in first.messages[1].content  # type: ignore[attr-defined]
    assert (first.row_id, first.prompt_id) != (before.row_id, before.prompt_id)  # type: ignore[attr-defined]
    assert first.seed_id == before.seed_id  # type: ignore[attr-defined]
    assert others == same
    assert made.manifest.counts["filters"]["truecase"]["changed"] == 1


def test_parts_of_one_dialogue_stay_on_one_side_and_are_rows_of_their_own(
    store: Store, tmp_path: Path
) -> None:
    def long(n: int) -> dict[str, Any]:
        pairs = [dialogue(f"question {n} {k} " + "why " * 8, "because " * 8)["messages"] for k in range(4)]
        return {"messages": [message for pair in pairs for message in pair]}

    path = write(tmp_path / "d.jsonl", [long(n) for n in range(12)])
    filters = ["split-long=96"]
    made = import_source(
        Work(store), str(path), "sft", filters=filters, tokenizer="sandbox", test_fraction=0.5
    ).artifact
    assert made is not None
    rows: list[tuple[str, Any]] = [(split, row) for _, split, row in made.rows()]
    assert len(rows) > 12
    assert len({row.row_id for _, row in rows}) == len(rows)
    sides: dict[str, set[str]] = {}
    for split, row in rows:
        sides.setdefault(row.seed_id, set()).add(split)
    assert len(sides) == 12
    assert all(len(found) == 1 for found in sides.values())
    assert made.manifest.counts["filters"]["split-long=96"]["split"] == 12
    with pytest.raises(UsageError, match="whose tokens"):
        import_source(Work(store), str(path), "sft", filters=filters)
    questions = write(tmp_path / "p.jsonl", [{"prompt": long(1)["messages"][:-1]}, {"prompt": "short"}])
    asked = import_source(
        Work(store), str(questions), "prompts", filters=filters, tokenizer="sandbox"
    ).artifact
    assert asked is not None
    assert asked.manifest.counts["rejects"] == {"cut_apart": 1}


def test_a_filter_looks_at_the_prompt_of_pairs(store: Store, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "chosen": PERSONA, "rejected": "b"} for n in range(5)]
    path = write(tmp_path / "p.jsonl", [*rows, {**rows[0], "rejected": "c"}])
    made = import_source(
        Work(store), str(path), "prefs", filters=["persona", "exact-duplicates=prompt"], test_fraction=0
    ).artifact
    assert made is not None
    assert (made.count(), made.manifest.counts["rejects"]) == (5, {"exact_duplicate": 1})


def test_rows_of_an_evaluation_suite_are_dropped_and_recorded(store: Store, tmp_path: Path) -> None:
    suite = write(
        tmp_path / "suites" / "mine.jsonl",
        [{"prompt": "Which mountain is the highest one that stands on dry land?"}],
    ).parent
    rows = [dialogue(f"question number {n} about birds", "a") for n in range(9)]
    rows.append(dialogue("Which mountain is the highest one that stands on dry land?", "Everest"))
    path = write(tmp_path / "d.jsonl", rows)
    work = Work(store, project=Project(suites=str(suite)))
    made = import_source(work, str(path), "sft", test_fraction=0).artifact
    assert made is not None
    assert (made.count(), made.manifest.counts["rejects"]) == (9, {"contaminated": 1})
    record = (made.manifest.model_extra or {})["decontamination"]
    assert (record["compared"], record["hits"], record["dropped"]) == (10, 1, 1)
    assert [i.ref for i in made.manifest.inputs if i.role == "suite"] == ["mine"]
    kept = import_source(work, str(path), "sft", contaminated="keep", test_fraction=0).artifact
    assert kept is not None
    record = (kept.manifest.model_extra or {})["decontamination"]
    assert (kept.count(), record["hits"], record["dropped"]) == (10, 1, 0)


def test_every_row_is_kept_or_among_the_rejects(store: Store, tmp_path: Path) -> None:
    rows = [dialogue(f"question {n % 30}", f"answer {n % 40}") for n in range(100)]
    rows[7] = {"messages": 7}
    path = write(tmp_path / "d.jsonl", rows)
    made = import_source(
        Work(store), str(path), "sft", filters=["exact-duplicates"], on_bad_row="skip"
    ).artifact
    assert made is not None
    rejected = Counter(r["reason"] for r in made.rejects())
    assert rejected["bad row"] == 1
    assert made.count() + rejected.total() == 100


def test_a_model_of_the_hub_is_named_by_its_commit(
    store: Store, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / ("c" * 40)
    shutil.copytree(tiny, snapshot)
    asked = []

    def from_hub(name: str) -> Path:
        asked.append(name)
        return snapshot

    monkeypatch.setattr("zephyrctl.training.locate._from_hub", from_hub)
    made = import_source(Work(store), "hf://org/Tiny_Model@main", "model").artifact
    assert made is not None
    assert made.ref.name == "tiny_model"
    assert asked == ["org/Tiny_Model@main"]
    assert made.manifest.inputs[0].ref == f"hf://org/Tiny_Model@{'c' * 40}"
