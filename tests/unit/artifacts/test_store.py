from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.tags import tag
from zephyrctl.errors import EnvironmentFault, IntegrityError, RefNotFound, WrongKind

if TYPE_CHECKING:
    from conftest import Make


def damage(path: Path) -> None:
    """Changes one byte in the middle of a file."""
    path.chmod(0o644)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def test_looking_at_a_store_writes_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "artifacts")
    assert store.names() == []
    assert store.newest("prefs") is None
    assert store.find_step("prefs", "0" * 64) is None
    with pytest.raises(RefNotFound, match="no artifact 'prefs'"):
        store.resolve("prefs")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_may_not_be_made_has_to_exist(tmp_path: Path) -> None:
    with pytest.raises(RefNotFound):
        Store.open(tmp_path / "artifacts", create=False)


def test_a_store_keeps_its_identity(store: Store) -> None:
    store.prepare()
    first = (store.root / "store.json").read_bytes()
    store.prepare()
    assert (store.root / "store.json").read_bytes() == first
    assert json.loads(first)["store_format"] == 1
    assert not [p for p in store.root.iterdir() if p.name.startswith(".store")]


def test_a_store_of_a_newer_zephyrctl_says_so(store: Store) -> None:
    store.prepare()
    (store.root / "store.json").write_text('{"store_format": 2, "id": "x"}', encoding="utf-8")
    with pytest.raises(IntegrityError, match="newer zephyrctl"):
        Store.open(store.root)
    (store.root / "store.json").write_text("{", encoding="utf-8")
    with pytest.raises(IntegrityError, match="not the marker"):
        Store.open(store.root)


def test_a_store_that_is_a_file_is_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("", encoding="utf-8")
    with pytest.raises(EnvironmentFault):
        Store.open(tmp_path / "artifacts")


def test_every_form_of_a_ref_finds_its_version(store: Store, make: Make) -> None:
    one, two = make(knob=1), make(knob=2, rows=5)
    assert [str(a.ref) for a in store.versions("prefs")] == ["prefs@v1", "prefs@v2"]
    assert store.resolve("prefs").ref == two.ref
    assert store.resolve("prefs@v1").ref == one.ref
    assert store.resolve(f"prefs@{one.digest}").ref == one.ref
    assert store.resolve(f"prefs@{one.digest[:15]}").ref == one.ref
    tag(store, "prefs@v1", "good")
    assert store.resolve("prefs:good").ref == one.ref


def test_near_names_are_offered(store: Store, make: Make) -> None:
    make("sft-data", "sft")
    with pytest.raises(RefNotFound) as caught:
        store.resolve("sft-dat")
    assert "did you mean sft-data?" in str(caught.value.hint)
    with pytest.raises(RefNotFound) as caught:
        store.resolve("sft-data@v7")
    assert "v1" in str(caught.value.hint)
    with pytest.raises(RefNotFound, match="no tag 'best'"):
        store.resolve("sft-data:best")
    with pytest.raises(RefNotFound, match="digest"):
        store.resolve("sft-data@sha256:00000000")


def test_a_version_without_a_manifest_does_not_exist(store: Store, make: Make) -> None:
    one, two = make(knob=1), make(knob=2)
    (two.path / "manifest.json").unlink()
    assert store.resolve("prefs").ref == one.ref
    assert store.numbers("prefs") == [1]
    with pytest.raises(RefNotFound, match="no finished version"):
        store.resolve("prefs@v2")
    assert str(make(knob=3).ref) == "prefs@v3"


def test_a_damaged_newest_version_is_never_passed_over(store: Store, make: Make) -> None:
    make(knob=1)
    damage(make(knob=2).path / "manifest.json")
    for call in (
        lambda: store.resolve("prefs"),
        lambda: store.resolve("prefs@v2"),
        lambda: store.newest("prefs"),
    ):
        with pytest.raises(IntegrityError) as caught:
            call()
        assert caught.value.exit_code == 5
        assert caught.value.hint
    assert store.resolve("prefs@v1").ref.version == 1
    kinds = [type(found).__name__ for _, found in store.scan("prefs")]
    assert kinds == ["IntegrityError", "Artifact"]


def test_a_manifest_from_another_name_is_refused(store: Store, make: Make) -> None:
    one = make()
    shutil.copytree(one.path, store.root / "other" / "v1")
    with pytest.raises(IntegrityError, match="belongs to 'prefs'"):
        store.resolve("other")


def test_worlds_and_sides_never_mix_implicitly(store: Store, make: Make) -> None:
    real = make(knob=1, world="real")
    sandbox = make(knob=2, world="sandbox")
    assert store.newest("prefs") is not None
    found = store.newest("prefs", world="real")
    assert found is not None
    assert found.ref == real.ref
    found = store.newest("prefs", world="sandbox", kind="prefs")
    assert found is not None
    assert found.ref == sandbox.ref
    assert store.newest("prefs", kind="sft") is None


def test_rows_come_back_in_order_with_their_place(make: Make) -> None:
    artifact = make(rows=3, test=2)
    found = list(artifact.rows())
    assert [(where, split) for where, split, _ in found] == [
        ("prefs@v1 row 1", "train"), ("prefs@v1 row 2", "train"), ("prefs@v1 row 3", "train"),
        ("prefs@v1 row 4", "test"), ("prefs@v1 row 5", "test"),
    ]  # fmt: skip
    assert [row.prompt[0].content for _, _, row in found] == [f"question {n}" for n in range(5)]  # type: ignore[attr-defined]
    assert [where for where, _, _ in artifact.rows("test")] == ["prefs@v1 row 4", "prefs@v1 row 5"]
    assert (artifact.count(), artifact.count("test"), artifact.splits()) == (5, 2, ["train", "test"])


def test_damage_is_found_before_a_row_is_given(make: Make) -> None:
    artifact = make()
    damage(artifact.path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(IntegrityError, match=r"test-00000-of-00001.parquet: the content differs") as caught:
        artifact.rows("train")
    assert "--again" in str(caught.value.hint)


def test_missing_and_cut_files_are_named_with_their_sizes(make: Make) -> None:
    artifact = make()
    data = artifact.path / "data" / "train-00000-of-00001.parquet"
    size = data.stat().st_size
    data.chmod(0o644)
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=rf"{size - 1} bytes found, {size} expected"):
        artifact.check()
    data.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        artifact.check()


def test_a_stray_file_that_a_loader_would_read_is_reported(make: Make) -> None:
    artifact = make()
    (artifact.path / "notes.txt").write_text("harmless", encoding="utf-8")
    artifact.check()
    shutil.copy(
        artifact.path / "data" / "test-00000-of-00001.parquet", artifact.path / "data" / "train-x.parquet"
    )
    with pytest.raises(IntegrityError, match=r"train-x.parquet is not in the manifest"):
        artifact.check()
    model = make("tiny", "model", files={"config.json": "{}", "model.safetensors": "x"})
    model.check()
    (model.path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(IntegrityError, match="adapter_config"):
        model.check()


def test_a_card_that_was_edited_stops_no_reader_but_is_found_by_problems(make: Make) -> None:
    artifact = make()
    damage(artifact.path / "README.md")
    assert len(list(artifact.rows())) == 6
    assert any("README.md" in problem for problem in artifact.problems())


def test_weights_are_hashed_again_only_when_they_changed(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("tiny", "model", files={"config.json": "{}", "model.safetensors": "weights"})
    read: list[str] = []
    from zephyrctl.artifacts import digests

    plain = digests.hash_file
    monkeypatch.setattr(digests, "hash_file", lambda path: read.append(path.name) or plain(path))
    store.resolve("tiny").check()
    assert "model.safetensors" not in read
    assert "config.json" in read
    damage(model.path / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"model.safetensors: the content differs"):
        store.resolve("tiny").check()


def test_kinds_without_rows_say_so(make: Make) -> None:
    model = make("tiny", "model", files={"config.json": "{}"})
    with pytest.raises(WrongKind):
        model.rows()
    assert model.read_text("config.json") == "{}"
    with pytest.raises(RefNotFound):
        model.read_text("absent.json")


def test_reading_from_a_store_without_write_access(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    from zephyrctl.artifacts import durable

    class ReadOnly(durable.Calls):
        def __getattribute__(self, name: str) -> object:
            raise OSError(30, "Read-only file system")

    monkeypatch.setattr(durable, "calls", ReadOnly())
    again = Store.open(store.root)
    found = again.resolve("prefs")
    assert isinstance(found, Artifact)
    assert len(list(found.rows())) == 6


def test_thousands_of_versions_are_searched_without_parsing_them_all(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(knob=0)
    other = make(knob=1)
    for n in range(3, 400):
        (store.root / "prefs" / f"v{n}").mkdir()
        shutil.copy(other.path / "manifest.json", store.root / "prefs" / f"v{n}")
    from zephyrctl.artifacts import store as module

    parsed: list[Path] = []
    plain = module.load
    monkeypatch.setattr(module, "load", lambda folder: parsed.append(folder) or plain(folder))
    found = store.find_step("prefs", first.manifest.step_key)
    assert found is not None
    assert found.ref == first.ref
    assert parsed == [first.path]
