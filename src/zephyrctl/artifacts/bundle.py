"""Bundles: folders with models, suites and data of the Hub for machines that cannot reach it.

    DIR/bundle.json                 what belongs into the bundle: commits, sizes, sha256
    DIR/models/ORG/NAME/…           the files of a model
    DIR/suites/ORG/NAME/…           an evaluation suite; the evaluation harness finds it by name from DIR/suites
    DIR/data/ORG/NAME/…             a data set to train on

`bundle_fetch` fills such a folder where there is a network. Here it is read: every file is compared with what the
bundle says before anything is made of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from zephyrctl.artifacts import durable
from zephyrctl.artifacts.digests import HashCache
from zephyrctl.errors import IntegrityError, RefNotFound, UsageError
from zephyrctl.events import Table

FILE = "bundle.json"
VARIABLE = "ZEPHYRCTL_OFFLINE_DIR"
"""The environment variable that names the bundle in use; child processes see it too."""
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")
"""What is needed of a model's repository, as patterns."""
NOT_MODEL_FILES = ("*/*", "consolidated*")
"""Copies of the weights in other layouts lie beside many models."""
_SCHEMA = 1

Kind = Literal["model", "suite", "data"]
FOLDERS: Mapping[Kind, str] = {"model": "models", "suite": "suites", "data": "data"}
State = Literal["found", "missing", "damaged"]


@dataclass(frozen=True)
class BundleFile:
    """A file of a repository: its name there, bytes, and sha256 (None until it has been fetched and hashed).

    `blob` is what git calls its content, where the Hub told that and no sha256.
    """

    path: str
    size: int
    sha256: str | None
    blob: str | None = None


@dataclass(frozen=True)
class Thing:
    """A repository at one commit. `revision` is what was asked for, None = the newest."""

    kind: Kind
    repo: str
    revision: str | None
    commit: str
    files: tuple[BundleFile, ...]

    @property
    def ref(self) -> str:
        """How lineage and tables call it: `hf://org/name@commit`."""
        return f"hf://{self.repo}@{self.commit}"

    def folder(self, bundle: Path) -> Path:
        """Where its files lie."""
        return bundle / FOLDERS[self.kind] / self.repo

    def answers(self, repo: str, revision: str | None) -> bool:
        """Whether it is what somebody means who asks for `repo` at `revision`."""
        return self.repo == repo and revision in (None, self.revision, self.commit)


@dataclass(frozen=True)
class Checked:
    """A file of a bundle and how it was found."""

    thing: Thing
    file: BundleFile
    state: State


def offline_dir() -> Path | None:
    """The bundle in use; None where the Hub itself is asked."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else None


def use(bundle: Path) -> None:
    """From now on this process and its children take what they need of the Hub from `bundle`, and nothing from the
    network. Raises RefNotFound and IntegrityError where it is no bundle."""
    things(bundle)
    os.environ[VARIABLE] = os.fspath(bundle.absolute())
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"


def things(bundle: Path) -> list[Thing]:
    """What belongs into the bundle. Raises RefNotFound where there is none, IntegrityError where its list is
    damaged."""
    try:
        body = json.loads((bundle / FILE).read_text(encoding="utf-8"))
        if body["schema"] != _SCHEMA:
            raise UsageError(f"{bundle / FILE} is of another version of zephyrctl ({body['schema']})")
        return [_thing(entry) for entry in body["things"]]
    except FileNotFoundError:
        raise RefNotFound(
            f"{bundle} is no bundle: it has no {FILE}", hint=f"{_by_hand('EDITION')}, then bring the folder"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"{bundle / FILE} cannot be read", hint="bring the bundle once more") from None


def write(bundle: Path, found: Iterable[Thing]) -> None:
    """Puts the list of things into the bundle, in one step. Raises EnvironmentFault where the disk refuses."""
    ordered = sorted(found, key=lambda thing: (thing.kind, thing.repo))
    body = {"schema": _SCHEMA, "things": [asdict(thing) for thing in ordered]}
    with durable.faults(bundle):
        durable.make_dir(bundle)
        durable.replace(bundle / FILE, json.dumps(body, indent=1, ensure_ascii=False).encode() + b"\n")


def check(bundle: Path, wanted: Iterable[Thing], cache: HashCache | None = None) -> list[Checked]:
    """Every file of the things, compared by size and sha256. A file that was never fetched whole is missing."""
    cache = cache or HashCache(None)
    return [
        Checked(t, file, _state(t.folder(bundle) / file.path, file, cache))
        for t in wanted
        for file in t.files
    ]


def table(checked: Iterable[Checked], title: str = "bundle") -> Table:
    """The files for people: what they belong to, bytes, sha256, and how they were found."""
    rows = tuple(
        (
            c.thing.kind,
            f"{c.thing.repo}/{c.file.path}",
            f"{c.file.size:,}",
            c.file.sha256 or "not yet known",
            c.state,
        )
        for c in checked
    )
    return Table(title, ("kind", "file", "bytes", "sha256", "state"), rows)


def require(bundle: Path, checked: Iterable[Checked]) -> None:
    """Raises IntegrityError naming the first file that is not found whole, and how many there are."""
    wrong = [c for c in checked if c.state != "found"]
    if wrong:
        first = wrong[0]
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise IntegrityError(
            f"{first.file.path} of {first.thing.repo} is {first.state} in {bundle}{more}",
            hint=f"zephyrctl fetch --check {bundle} lists all; {_by_hand(first.thing.repo)}, then bring the folder",
        )


def look_up(bundle: Path, kind: Kind, repo: str, revision: str | None) -> Thing:
    """The thing in the bundle that somebody asks for. Raises RefNotFound naming what there is instead."""
    there = [thing for thing in things(bundle) if thing.kind == kind]
    for thing in there:
        if thing.answers(repo, revision):
            return thing
    asked = f"{repo}@{revision}" if revision else repo
    names = ", ".join(thing.ref.removeprefix("hf://") for thing in there) or "none"
    raise RefNotFound(
        f"{asked} is not in the bundle {bundle} ({FOLDERS[kind]} there: {names})", hint=_by_hand(asked)
    )


def open_thing(bundle: Path, kind: Kind, name: str, cache: HashCache | None = None) -> tuple[Path, Thing]:
    """The folder of `org/name[@revision]` in the bundle, every file of it checked.

    Raises RefNotFound where the bundle does not have it, IntegrityError where a file is missing or damaged.
    """
    repo, _, revision = name.partition("@")
    thing = look_up(bundle, kind, repo, revision or None)
    require(bundle, check(bundle, [thing], cache))
    return thing.folder(bundle), thing


def with_hashes(thing: Thing, sha256: Mapping[str, str]) -> Thing:
    """The thing with the hashes of its files filled in."""
    files = tuple(replace(file, sha256=sha256.get(file.path, file.sha256)) for file in thing.files)
    return replace(thing, files=files)


def safe_name(name: str) -> str:
    """`name` itself where it stays inside the folder it is joined to. Raises IntegrityError otherwise."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise IntegrityError(f"a file of a repository is called {name!r}, which leads out of its folder")
    return name


def _thing(entry: Mapping[str, Any]) -> Thing:
    kind: Kind = entry["kind"]
    if kind not in FOLDERS:
        raise ValueError(kind)
    files = tuple(
        BundleFile(safe_name(str(f["path"])), int(f["size"]), _text(f["sha256"]), _text(f.get("blob")))
        for f in entry["files"]
    )
    return Thing(kind, safe_name(str(entry["repo"])), _text(entry["revision"]), str(entry["commit"]), files)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _state(path: Path, file: BundleFile, cache: HashCache) -> State:
    if file.sha256 is None or not path.is_file():
        return "missing"
    if path.stat().st_size != file.size or cache.sha256(path) != file.sha256:
        return "damaged"
    return "found"


def _by_hand(what: str) -> str:
    named = f"hf:{what}" if "@" in what else what
    return f"on a connected machine: zephyrctl fetch --for {named} --to DIR"
