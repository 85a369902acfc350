"""Models as inputs: a version of the store, a link to one, or a plain Hugging Face folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.digests import HashCache
from zephyrctl.artifacts.links import linked_ref
from zephyrctl.artifacts.manifest import FILE_NAME, FileEntry, World, content_digest, is_content, load
from zephyrctl.artifacts.ref import Ref, version_number
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.writer import PICKLES
from zephyrctl.errors import IntegrityError, RefNotFound, UsageError, WrongKind
from zephyrctl.records import SCHEMAS

_KEPT = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken")
ADAPTER = "adapter"
"""The folder beside merged weights in which the adapter that made them is kept, as PEFT lays it out."""
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "base.json")
_NOT_KEPT = {
    "trainer_state.json",
    "training_args.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
}


@dataclass(frozen=True)
class ModelSource:
    """A model to read: its folder, its digest, and how lineage names it.

    `artifact` is None for outside folders.
    """

    path: Path
    digest: str
    ref: str
    world: World
    artifact: Artifact | None


def model_files(folder: Path) -> list[Path]:
    """The files that make up a model: config, weights, tokenizer, template at the top, by name; then its adapter's."""
    found = sorted(p for p in folder.iterdir() if p.is_file())
    kept = [p for p in found if p.suffix in _KEPT and p.name not in _NOT_KEPT and p.name != FILE_NAME]
    return kept + [p for name in _ADAPTER_FILES if (p := folder / ADAPTER / name).is_file()]


def model_names(folder: Path) -> list[str]:
    """The same as paths in the folder, as a version lists them."""
    return [p.relative_to(folder).as_posix() for p in model_files(folder)]


def left_out(folder: Path) -> list[str]:
    """What a model folder holds that is no part of the model: pickles, code, other folders."""
    kept = set(model_names(folder))
    there = [p.relative_to(folder).as_posix() for p in (*folder.iterdir(), *folder.glob(f"{ADAPTER}/*"))]
    holding = {name.partition("/")[0] for name in there if "/" in name}
    return sorted(name for name in there if name not in kept and name not in holding)


def check_model_folder(path: Path, *, whole: bool = True) -> Path:
    """`path` itself, when it is a folder with a model in safetensors files.

    Raises RefNotFound, WrongKind when there is no config.json, IntegrityError when a weights file is cut;
    and, when it has to be `whole`, UsageError where the weights are pickles, IntegrityError where they or a
    shard are missing.
    """
    if not path.is_dir():
        raise RefNotFound(
            f"no such model folder: {path}",
            hint="name@v1 names a model of the store (zephyrctl artifacts ls)",
        )
    if not (path / "config.json").is_file():
        raise WrongKind(
            f"{path} is not a model folder: it has no config.json",
            hint="give the folder that holds config.json",
        )
    weights = sorted(path.glob("*.safetensors"))
    for file in (p for p in model_files(path) if p.suffix == ".safetensors"):
        _check_header(file)
    if not whole:
        return path
    if not weights:
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise UsageError(
                f"{path}: the weights are pickles ({', '.join(pickles[:3])}), which can run code when read",
                hint="save the model as safetensors: model.save_pretrained(folder)",
            )
        raise IntegrityError(f"{path}: config.json is there, the weights are not (model.safetensors)")
    for index in path.glob("*.safetensors.index.json"):
        missing = sorted(_shards(index) - {p.name for p in weights})
        if missing:
            raise IntegrityError(f"{path}: {index.name} names {missing[0]}, which is missing")
    return path


def model_folder_digest(path: Path, cache: HashCache | None = None) -> str:
    """The content digest of a model folder, the same that a version with the same files has."""
    cache = cache or HashCache(None)
    entries = [
        FileEntry(path=name, size=(path / name).stat().st_size, sha256=cache.sha256(path / name))
        for name in model_names(path)
    ]
    return content_digest("model", SCHEMAS["model"], [e for e in entries if is_content("model", e.path)])


def model_from_ref(store: Store, text: str) -> ModelSource:
    """The model that a ref means, its files checked. Raises RefNotFound, WrongKind, IntegrityError."""
    return _of_artifact(store.resolve(text))


def model_from_folder(store: Store, path: Path) -> ModelSource:
    """The model in a folder; a link of ours, or a version's own folder, is the artifact it stands for.

    Raises RefNotFound (with the models there are), WrongKind, UsageError, IntegrityError.
    """
    path = path.expanduser()
    ref = linked_ref(store, path)
    if ref is not None:
        return _of_artifact(store.get(ref))
    if path.is_symlink() and not path.exists():
        raise RefNotFound(f"{path} links to {path.readlink()}, which is gone", hint=_candidates(store))
    if not path.exists():
        raise RefNotFound(f"no such model folder: {path}", hint=_candidates(store))
    manifest = load(path) if path.is_dir() else None
    if manifest is not None:
        found = artifact_at(store, path)
        return _of_artifact(found, ref=os.fspath(path))
    # whether the weights are there is for those who know what they are needed for
    check_model_folder(path, whole=False)
    return ModelSource(path, model_folder_digest(path.absolute(), store.cache), os.fspath(path), "real", None)


def artifact_at(store: Store, path: Path) -> Artifact:
    """The artifact whose folder is `path`, in this store or brought from elsewhere.

    Raises RefNotFound, IntegrityError.
    """
    ref = linked_ref(store, path)
    if ref is not None:
        return store.get(ref)
    manifest = load(path)
    if manifest is None:
        raise RefNotFound(f"{path} holds no artifact: it has no {FILE_NAME}")
    return Artifact(Ref(manifest.name, version_number(path.resolve().name) or 0), path, manifest, store.cache)


def _of_artifact(artifact: Artifact, ref: str | None = None) -> ModelSource:
    if artifact.kind != "model":
        raise WrongKind(
            f"a model expected, {artifact.ref} is a {artifact.kind} artifact",
            hint="zephyrctl sft or zephyrctl dpo makes models; --data names data",
        )
    artifact.check()
    return ModelSource(
        artifact.path, artifact.digest, ref or str(artifact.ref), artifact.manifest.world, artifact
    )


def _candidates(store: Store) -> str:
    models = [
        n for n in store.names() if (newest := _newest(store, n)) is not None and newest.kind == "model"
    ]
    return (
        "models in the store: " + ", ".join(f"ckpt/{n}" for n in models[:20])
        if models
        else "zephyrctl sft makes one"
    )


def _newest(store: Store, name: str) -> Artifact | None:
    return next((found for _, found in store.scan(name) if isinstance(found, Artifact)), None)


def _shards(index: Path) -> set[str]:
    try:
        return {str(v) for v in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"{index}: not an index of weights") from None


def _check_header(path: Path) -> None:
    """The header of a safetensors file fits its size: 8 bytes of length, JSON, tensors end to end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, 100 << 20):
            raise IntegrityError(f"{path}: not a whole safetensors file ({size} bytes)")
        try:
            header = json.loads(file.read(length))
            end = max(
                (int(v["data_offsets"][1]) for k, v in header.items() if k != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise IntegrityError(f"{path}: the header of the safetensors file is damaged") from None
    if 8 + length + end != size:
        raise IntegrityError(
            f"{path}: {size} bytes found, its header says {8 + length + end}; the file is cut or damaged"
        )
