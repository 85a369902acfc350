"""From a model's name to its folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts import bundle
from zephyrctl.artifacts.bundle import BundleFile, Thing
from zephyrctl.artifacts.digests import hash_file
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import EnvironmentFault, IntegrityError, RefNotFound, TryAgain, UsageError
from zephyrctl.training.locate import locate_model


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "artifacts")


def test_a_folder_is_known_by_its_content(store: Store, tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    first, second = locate_model(store, str(tiny)), locate_model(store, str(copy))
    assert first.digest == second.digest
    assert (first.world, first.artifact) == ("real", None)
    (copy / "chat_template.jinja").write_text("other", encoding="utf-8")
    assert locate_model(store, str(copy)).digest != first.digest


def test_a_missing_folder_and_a_missing_artifact(store: Store) -> None:
    for text in ("./no-such-folder", "ckpt/none", "gone@v1"):
        with pytest.raises(RefNotFound):
            locate_model(store, text)


def test_a_folder_without_weights_is_an_environment_fault(store: Store, tiny: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(tiny, tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    with pytest.raises(EnvironmentFault, match="weights are missing"):
        locate_model(store, str(bare))


@pytest.mark.parametrize("text", ["gpt-4", "claude-x", "sandbox:pool-a", "home:llama"])
def test_models_without_weights_are_refused(store: Store, text: str) -> None:
    with pytest.raises(UsageError):
        locate_model(store, text)


def test_the_sandbox_is_its_base_model(store: Store, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zephyrctl.training.locate.sandbox_base", lambda: tiny)
    found = locate_model(store, "sandbox")
    assert (found.world, found.ref, found.path) == ("sandbox", "sandbox", tiny)
    assert found.digest == locate_model(store, str(tiny)).digest


def test_the_hub_offline_can_succeed_later(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(TryAgain) as caught:
        locate_model(store, "someone/some-model")
    assert "zephyrctl fetch --for hf:someone/some-model --to DIR" in str(caught.value.hint)


def test_a_hub_name_that_does_not_exist(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RevisionNotFoundError

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise RevisionNotFoundError.__new__(RevisionNotFoundError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(RefNotFound, match="no model someone/none"):
        locate_model(store, "hf:someone/none")


def test_a_name_of_the_hub_is_the_same_model_online_and_in_a_bundle(
    store: Store, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = "c" * 40
    cached = tmp_path / "cache" / commit
    shutil.copytree(tiny, cached)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(cached))
    online = locate_model(store, "someone/tiny")
    brought = tmp_path / "bundle"
    files = tuple(
        BundleFile(p.name, p.stat().st_size, hash_file(p)) for p in sorted(tiny.iterdir()) if p.is_file()
    )
    thing = Thing("model", "someone/tiny", None, commit, files)
    shutil.copytree(tiny, thing.folder(brought))
    bundle.write(brought, [thing])
    monkeypatch.setenv(bundle.VARIABLE, str(brought))
    offline = locate_model(store, "someone/tiny")
    assert offline.path == thing.folder(brought)
    assert (offline.ref, offline.digest) == (online.ref, online.digest)
    assert offline.ref == f"hf://someone/tiny@{commit}"
    assert locate_model(store, offline.ref).path == offline.path
    with (offline.path / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")
    with pytest.raises(IntegrityError, match=r"model.safetensors of someone/tiny is damaged"):
        locate_model(store, "someone/tiny")
    with pytest.raises(RefNotFound, match="not in the bundle"):
        locate_model(store, "someone/other")
