"""Filling a bundle from the Hub: the commit is pinned first, then each file is fetched and compared with the Hub's own
hash of it. What is there already and whole is not fetched again, so a fetch that broke off goes on file by file."""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from zephyrctl.artifacts import bundle as bundles
from zephyrctl.artifacts import durable
from zephyrctl.artifacts.bundle import BundleFile, Kind, Thing
from zephyrctl.artifacts.digests import hash_file
from zephyrctl.errors import EnvironmentFault, IntegrityError, UsageError
from zephyrctl.events import Emit, Note, silent

_DATA_FILES = ("*.md", "*.parquet", "*.jsonl", "*.json", "*.jsonl.gz", "*.csv", "*.txt")


@dataclass(frozen=True)
class Wanted:
    """A repository to fetch: which, at what revision (None = the newest), and which of its files (patterns)."""

    kind: Kind
    repo: str
    revision: str | None = None
    patterns: tuple[str, ...] = bundles.MODEL_FILES
    but: tuple[str, ...] = ()


class Hub(Protocol):
    """The two things that are asked of the Hub."""

    def listing(self, wanted: Wanted, revision: str | None) -> tuple[str, list[BundleFile]]:
        """The commit that `revision` means now, and the files of it: sha256 known of large ones, `blob` of others."""
        ...

    def download(self, thing: Thing, names: Sequence[str], folder: Path) -> None:
        """Puts the files `names` of the thing's commit into `folder`."""
        ...


def model(name: str) -> Wanted:
    """The model `org/name[@revision]`, in safetensors."""
    repo, _, revision = name.partition("@")
    return Wanted("model", repo, revision or None, bundles.MODEL_FILES, bundles.NOT_MODEL_FILES)


def data(repo: str, revision: str | None) -> Wanted:
    """The files of a data set that rows are read from."""
    return Wanted("data", repo, revision, _DATA_FILES)


def suite(name: str) -> list[Wanted]:
    """The data sets of an evaluation suite, or of a group of them. Raises UsageError listing those that are known."""
    table = _suites()
    members: list[str] = table["groups"].get(name, [name])
    unknown = [one for one in members if one not in table["suites"]]
    if unknown:
        raise UsageError(f"no suite '{name}'", hint="known: " + ", ".join(suite_names()))
    found = [table["suites"][one] for one in members]
    return [Wanted("suite", entry["repo"], None, tuple(entry["files"])) for entry in found]


def suite_names() -> list[str]:
    """The suites and groups of suites that can be fetched."""
    table = _suites()
    return sorted([*table["suites"], *table["groups"]])


def plan(bundle: Path, wanted: Sequence[Wanted], hub: Hub) -> list[Thing]:
    """What would be fetched, at which commits. A thing that the bundle holds keeps its commit.

    Raises UsageError where the bundle holds it at another revision than is asked for, or the repository has no file
    that is needed.
    """
    held = {(thing.kind, thing.repo): thing for thing in _held(bundle)}
    return [_planned(bundle, one, hub, held.get((one.kind, one.repo))) for one in wanted]


def fetch(bundle: Path, planned: Sequence[Thing], hub: Hub, emit: Emit = silent) -> list[Thing]:
    """Fetches what `plan` named into the bundle; the things with all hashes.

    Raises EnvironmentFault where the disk has no room, IntegrityError where the Hub sent other bytes than it names.
    """
    _require_room(bundle, planned)
    held = {(thing.kind, thing.repo): thing for thing in _held(bundle)}
    held |= {(thing.kind, thing.repo): thing for thing in planned}
    bundles.write(bundle, held.values())
    for thing in planned:
        held[thing.kind, thing.repo] = _fetched(bundle, thing, hub, emit)
        bundles.write(bundle, held.values())
    return [held[thing.kind, thing.repo] for thing in planned]


def _suites() -> Mapping[str, Any]:
    import yaml

    text = files("zephyrctl.artifacts").joinpath("hub_suites.yaml").read_text(encoding="utf-8")
    table: Mapping[str, Any] = yaml.safe_load(text)
    return table


def _held(bundle: Path) -> list[Thing]:
    return bundles.things(bundle) if (bundle / bundles.FILE).exists() else []


def _planned(bundle: Path, wanted: Wanted, hub: Hub, held: Thing | None) -> Thing:
    if held is not None and not held.answers(wanted.repo, wanted.revision):
        raise UsageError(
            f"{bundle} holds {wanted.repo} at {held.revision or held.commit}, not at {wanted.revision}",
            hint="one folder holds one commit of a repository: --to another folder",
        )
    commit, listed = hub.listing(wanted, held.commit if held else wanted.revision)
    known = {file.path: file.sha256 for file in held.files} if held else {}
    chosen = tuple(
        replace(f, path=bundles.safe_name(f.path), sha256=f.sha256 or known.get(f.path))
        for f in sorted(listed, key=lambda f: f.path)
        if _matches(f.path, wanted)
    )
    weights = any(file.path.endswith(".safetensors") for file in chosen)
    if not chosen or (wanted.kind == "model" and not weights):
        what = "weights in safetensors" if wanted.kind == "model" else "files that can be read"
        raise UsageError(
            f"{wanted.repo} has no {what}", hint="another repository, or another revision: hf:NAME@REVISION"
        )
    return Thing(wanted.kind, wanted.repo, held.revision if held else wanted.revision, commit, chosen)


def _matches(path: str, wanted: Wanted) -> bool:
    return any(fnmatch.fnmatchcase(path, p) for p in wanted.patterns) and not any(
        fnmatch.fnmatchcase(path, p) for p in wanted.but
    )


def _fetched(bundle: Path, thing: Thing, hub: Hub, emit: Emit) -> Thing:
    folder = thing.folder(bundle)
    missing = [c.file for c in bundles.check(bundle, [thing]) if c.state != "found"]
    if missing:
        size = sum(file.size for file in missing)
        emit(
            Note(f"{thing.ref}: {len(missing)} of {len(thing.files)} files to fetch, {size / 2**20:,.1f} MiB")
        )
        with durable.faults(folder):
            durable.make_dir(folder)
            for file in missing:  # a file that is there and not whole would pass for fetched
                (folder / file.path).unlink(missing_ok=True)
        hub.download(thing, [file.path for file in missing], folder)
    return bundles.with_hashes(
        thing, {file.path: _whole_hash(folder / file.path, file, thing) for file in missing}
    )


def _whole_hash(path: Path, file: BundleFile, thing: Thing) -> str:
    """The sha256 of a file that has arrived. Raises IntegrityError, and removes it, where its size, its sha256 or git's
    name of its content is not what the Hub says."""
    if path.is_file() and path.stat().st_size == file.size:
        sha256 = hash_file(path)
        if sha256 == (file.sha256 or sha256) and (file.blob is None or file.blob == _git_name(path)):
            return sha256
    path.unlink(missing_ok=True)
    raise IntegrityError(
        f"{thing.ref}: {file.path} arrived with other bytes than the Hub names",
        hint="run the same command again",
    )


def _git_name(path: Path) -> str:
    """What git calls a file of these bytes: sha1 over `blob <size>`, a zero byte and the content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _require_room(bundle: Path, planned: Sequence[Thing]) -> None:
    place = next(p for p in (bundle.absolute(), *bundle.absolute().parents) if p.exists())
    needed = sum(file.size for thing in planned for file in thing.files if not _is_there(bundle, thing, file))
    free = shutil.disk_usage(place).free
    if needed > free:
        raise EnvironmentFault(
            f"{bundle} needs {needed / 2**30:.1f} GiB more, {free / 2**30:.1f} GiB are free there",
            hint="--to a folder on a larger disk",
        )


def _is_there(bundle: Path, thing: Thing, file: BundleFile) -> bool:
    path = thing.folder(bundle) / file.path
    return path.is_file() and path.stat().st_size == file.size
