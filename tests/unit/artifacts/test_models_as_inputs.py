from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zephyrctl.artifacts.models import (
    check_model_folder,
    model_files,
    model_folder_digest,
    model_from_folder,
    model_from_ref,
)
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import IntegrityError, RefNotFound, UsageError, WrongKind
from zephyrctl.events import Recorder
from zephyrctl.stages.importing.config import ImportConfig
from zephyrctl.stages.importing.run import run

if TYPE_CHECKING:
    from conftest import Make


def import_source(work: Work, text: str, kind: str, name: str | None = None) -> StepResult:
    """What `zephyrctl import TEXT --as KIND --out NAME` does."""
    return run(ImportConfig(source=text, kind=kind, test_fraction=0.1, out=name), work)


def safetensors(values: int = 4) -> bytes:
    """A safetensors file with one tensor of `values` float32 zeros."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 4 * values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face model folder, with things beside the model that are no part of it."""
    path = tmp_path / "My Model_7B"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "mistral"}', encoding="utf-8")
    (path / "tokenizer.json").write_text("{}", encoding="utf-8")
    (path / "model.safetensors").write_bytes(safetensors())
    (path / "training_args.bin").write_bytes(b"pickle")
    (path / "optimizer.pt").write_bytes(b"pickle")
    (path / "modeling_x.py").write_text("", encoding="utf-8")
    (path / "README.md").write_text("", encoding="utf-8")
    return path


def test_a_folder_is_a_model_with_its_digest(store: Store, folder: Path) -> None:
    found = model_from_folder(store, folder)
    assert (found.path, found.ref, found.world, found.artifact) == (folder, str(folder), "real", None)
    assert found.digest == model_folder_digest(folder)
    assert [p.name for p in model_files(folder)] == ["config.json", "model.safetensors", "tokenizer.json"]
    (folder / "README.md").write_text("other", encoding="utf-8")
    assert model_folder_digest(folder) == found.digest
    (folder / "tokenizer.json").write_text('{"a": 1}', encoding="utf-8")
    assert model_folder_digest(folder) != found.digest


def test_an_imported_folder_keeps_its_digest_and_its_parts_only(store: Store, folder: Path) -> None:
    heard = Recorder()
    result = import_source(Work(store, heard), str(folder), "model")
    assert result.ref == "my-model_7b@v1"
    assert result.artifact is not None
    assert result.artifact.digest == model_folder_digest(folder)
    names = {f.path for f in result.artifact.manifest.files}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert any("training_args.bin" in text for text in heard.texts())
    assert import_source(Work(store), str(folder), "model").already


def test_an_adapter_beside_the_weights_is_part_of_the_model(store: Store, folder: Path) -> None:
    alone = model_folder_digest(folder)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "optimizer.pt").write_bytes(b"pickle")
    assert model_folder_digest(folder) == alone
    for name in ("adapter_config.json", "base.json"):
        (folder / "adapter" / name).write_text("{}", encoding="utf-8")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(safetensors())
    heard = Recorder()
    first = import_source(Work(store, heard), str(folder), "model").artifact
    assert first is not None
    assert first.digest == model_folder_digest(folder) != alone
    assert (first.path / "adapter" / "adapter_model.safetensors").is_file()
    assert "adapter/optimizer.pt" in " ".join(heard.texts())
    second = import_source(Work(store), str(first.ref), "model", "again").artifact
    assert second is not None
    assert second.digest == first.digest
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(safetensors()[:-1])
    with pytest.raises(IntegrityError, match="adapter_model"):
        check_model_folder(folder)


def test_refs_links_and_version_folders_are_the_artifact(store: Store, folder: Path) -> None:
    import_source(Work(store), str(folder), "model", "sft-e1")
    digest = model_folder_digest(folder)
    for found in (
        model_from_ref(store, "sft-e1"),
        model_from_folder(store, store.ckpt / "sft-e1"),
        model_from_folder(store, store.root / "sft-e1" / "v1"),
        model_from_folder(store, Path(os.path.relpath(store.ckpt / "sft-e1"))),
    ):
        assert (found.ref, found.digest) == ("sft-e1@v1", digest)
        assert found.path == store.root / "sft-e1" / "v1"


def test_a_damaged_model_artifact_is_found_through_its_link(store: Store, folder: Path) -> None:
    import_source(Work(store), str(folder), "model", "sft-e1")
    weights = store.root / "sft-e1" / "v1" / "model.safetensors"
    weights.chmod(0o644)
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    with pytest.raises(IntegrityError, match=r"model.safetensors"):
        model_from_folder(store, store.ckpt / "sft-e1")


def test_what_is_no_model_says_so(store: Store, make: Make, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RefNotFound) as caught:
        model_from_folder(store, store.ckpt / "sft-e1")
    assert "zephyrctl sft" in str(caught.value.hint)
    import_source(Work(store), str(folder), "model", "sft-e1")
    with pytest.raises(RefNotFound) as caught:
        model_from_folder(store, store.ckpt / "sft-e2")
    assert "ckpt/sft-e1" in str(caught.value.hint)
    (tmp_path / "void").mkdir()
    with pytest.raises(WrongKind, match=r"config.json"):
        model_from_folder(store, tmp_path / "void")
    data = make()
    with pytest.raises(WrongKind, match="prefs artifact"):
        model_from_ref(store, "prefs")
    with pytest.raises(WrongKind, match="prefs artifact"):
        model_from_folder(store, data.path)


def test_a_link_whose_version_is_gone_says_so(store: Store, folder: Path) -> None:
    store.ckpt.mkdir()
    (store.ckpt / "old").symlink_to("../elsewhere/v1")
    with pytest.raises(RefNotFound, match="gone"):
        model_from_folder(store, store.ckpt / "old")


@pytest.mark.parametrize("cut", [0, 4, 20, -16, -1])
def test_cut_weights_are_refused(store: Store, folder: Path, cut: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    with pytest.raises(IntegrityError):
        import_source(Work(store), str(folder), "model")
    with pytest.raises(IntegrityError):
        model_from_folder(store, folder)


def test_pickled_weights_alone_are_refused(store: Store, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickles") as caught:
        import_source(Work(store), str(folder), "model")
    assert "safetensors" in str(caught.value.hint)
    (folder / "pytorch_model.bin").unlink()
    (folder / "optimizer.pt").unlink()
    (folder / "training_args.bin").unlink()
    with pytest.raises(IntegrityError, match="weights are not"):
        check_model_folder(folder)
    assert model_from_folder(store, folder).path == folder


def test_a_missing_shard_is_named(store: Store, folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(IntegrityError, match="model-00002-of-00002"):
        check_model_folder(folder)


def test_an_artifact_brought_from_another_store_keeps_its_world(
    store: Store, make: Make, tmp_path: Path
) -> None:
    files = {"config.json": "{}", "model.safetensors": safetensors().decode("latin-1")}
    made = make("tiny", "model", files=files, world="sandbox")
    other = Store.open(tmp_path / "other" / "artifacts")
    found = model_from_folder(other, made.path)
    assert (found.world, found.digest, found.ref) == ("sandbox", made.digest, str(made.path))
