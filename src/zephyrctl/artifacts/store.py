"""The store: which artifacts there are, and which version a ref means.

Reading needs no lock and writes nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zephyrctl.artifacts import durable
from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.digests import HashCache
from zephyrctl.artifacts.manifest import FILE_NAME, load
from zephyrctl.artifacts.ref import Asked, Ref, is_name, parse_ref, version_number
from zephyrctl.errors import EnvironmentFault, IntegrityError, RefNotFound

STORE_FORMAT = 1
MAKERS = {
    "prompts": "zephyrctl import FILE --as prompts",
    "sft": "zephyrctl gen-sft --teacher …",
    "feedback": "zephyrctl gen-prefs --teacher …",
    "prefs": "zephyrctl binarize",
    "model": "zephyrctl sft, or zephyrctl dpo --init …",
    "eval": "zephyrctl eval --model …",
}


@dataclass
class Store:
    """A folder of artifacts. Nothing is written before the first step that makes something (`prepare`)."""

    root: Path
    ledger_path: Path
    ckpt: Path
    create: bool = True
    cache: HashCache = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.cache = HashCache(self.work / "digests")

    @classmethod
    def open(cls, root: Path, *, ledger: Path | None = None, create: bool = True) -> Store:
        """The store at `root`, which need not exist yet when `create`.

        Raises RefNotFound when it does not and may not be made, IntegrityError when a newer zephyrctl made
        it.
        """
        root = Path(os.path.abspath(root.expanduser()))  # noqa: PTH100
        store = cls(root, ledger or root / "ledger.sqlite", root.parent / "ckpt", create)
        # one look only: another process may be making the folder right now
        mode = _mode(root)
        if mode is not None and not stat.S_ISDIR(mode):
            raise EnvironmentFault(f"the store {root} is not a folder", hint="point --store to a folder")
        if mode is None and not create:
            raise RefNotFound(
                f"no store at {root}", hint="--store DIR or ZEPHYRCTL_STORE says where the store is"
            )
        store._check_format()
        return store

    @property
    def work(self) -> Path:
        """Where unfinished steps live."""
        return self.root / ".work"

    @property
    def trash(self) -> Path:
        return self.root / ".trash"

    def prepare(self) -> None:
        """Makes the store's folder where it is missing. Raises EnvironmentFault when it cannot be written."""
        if not self.create and not self.root.is_dir():
            raise RefNotFound(
                f"no store at {self.root}", hint="--store DIR or ZEPHYRCTL_STORE says where it is"
            )
        with durable.faults(self.root):
            durable.make_dir(self.root)
            marker = self.root / "store.json"
            if marker.exists():
                return
            body = json.dumps({"store_format": STORE_FORMAT, "id": str(uuid.uuid4())}) + "\n"
            temporary = self.root / f".store.json.{os.getpid()}.{os.urandom(4).hex()}"
            durable.write_new(temporary, body.encode())
            # a link fails where another process was first, so that one id stays
            with contextlib.suppress(FileExistsError):
                durable.calls.link(os.fspath(temporary), os.fspath(marker))
            durable.calls.unlink(os.fspath(temporary))
            durable.sync_dir(self.root)

    def names(self) -> list[str]:
        """The names that have at least one finished version, sorted."""
        return [name for name in self._folders() if self.numbers(name)]

    def numbers(self, name: str) -> list[int]:
        """The numbers of the finished versions of `name`, oldest first (those that have a manifest, damaged
        or not).
        """
        folder = self.root / name
        return [n for n in self._taken(name) if (folder / f"v{n}" / FILE_NAME).is_file()]

    def versions(self, name: str) -> list[Artifact]:
        """All finished versions of `name`, oldest first. Raises IntegrityError when a manifest is damaged."""
        return [self.get(Ref(name, n)) for n in self.numbers(name)]

    def scan(self, name: str) -> Iterator[tuple[Ref, Artifact | IntegrityError]]:
        """Every finished version of `name`, newest first; a damaged one as the error it gives."""
        for number in reversed(self.numbers(name)):
            ref = Ref(name, number)
            try:
                yield ref, self.get(ref)
            except IntegrityError as error:
                yield ref, error

    def get(self, ref: Ref) -> Artifact:
        """That version. Raises RefNotFound, or IntegrityError when its manifest is damaged."""
        path = self.root / ref.name / f"v{ref.version}"
        try:
            manifest = load(path)
        except IntegrityError as error:
            raise IntegrityError(f"{ref}: {error.message}", hint=error.hint or self._remake(ref)) from None
        if manifest is None:
            raise self._no_version(ref)
        if manifest.name != ref.name:
            raise IntegrityError(f"{ref}: its manifest belongs to '{manifest.name}'", hint=self._remake(ref))
        return Artifact(ref, path, manifest, self.cache)

    def resolve(self, ref: str) -> Artifact:
        """The version that `name`, `name@v3`, `name:tag` or `name@sha256:1a2b3c4d` means.

        Raises UsageError for what is no ref, RefNotFound listing near names, IntegrityError for a damaged
        manifest: a damaged newest version is never passed over in favour of an older one.
        """
        asked = parse_ref(ref)
        numbers = self.numbers(asked.name)
        if asked.version is not None and numbers:
            return self.get(Ref(asked.name, asked.version))
        if not numbers:
            raise self._no_name(asked.name)
        if asked.tag is not None:
            return self._tagged(asked)
        if asked.digest is not None:
            return self._by_digest(asked.name, asked.digest)
        return self.get(Ref(asked.name, numbers[-1]))

    def newest(
        self, name: str, *, world: str | None = None, kind: str | None = None, sides: bool = False
    ) -> Artifact | None:
        """The newest version of `name` in that world and of that kind, None where there is none; for implicit
        inputs.

        Raises IntegrityError when a version that might be it has a damaged manifest.
        """
        for number in reversed(self.numbers(name)):
            artifact = self.get(Ref(name, number))
            manifest = artifact.manifest
            if (
                (sides or not manifest.side)
                and world in (None, manifest.world)
                and kind in (None, manifest.kind)
            ):
                return artifact
        return None

    def find_step(self, name: str, step_key: str) -> Artifact | None:
        """The newest version of `name` that the step with this key made, None where there is none.

        A version whose manifest is damaged cannot be known to be it, so it is passed over and will be made
        anew.
        """
        needle = step_key.encode()
        for number in reversed(self.numbers(name)):
            ref = Ref(name, number)
            with contextlib.suppress(IntegrityError, OSError):
                if needle in (self.root / name / f"v{number}" / FILE_NAME).read_bytes():
                    artifact = self.get(ref)
                    if artifact.manifest.step_key == step_key:
                        return artifact
        return None

    def next_number(self, name: str) -> int:
        """The number after the highest that `name` ever had: removed versions keep theirs."""
        gone = [entry.get("version", 0) for entry in self.history(name) if entry.get("event") == "remove"]
        return 1 + max([0, *self._taken(name), *(n for n in gone if isinstance(n, int))])

    def history(self, name: str) -> list[dict[str, object]]:
        """Tag moves and removals of `name`, oldest first; a line torn by a crash is left out."""
        entries = []
        try:
            lines = (self.root / name / "log.jsonl").read_bytes().splitlines()
        except OSError:
            return []
        for line in lines:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    entries.append(entry)
        return entries

    def tags(self, name: str) -> dict[str, tuple[int, str]]:
        """The tags of `name`: version and manifest digest each.

        Raises IntegrityError for a tag that cannot be read.
        """
        try:
            files = sorted((self.root / name / "tags").iterdir())
        except OSError:
            return {}
        return {f.name: self._read_tag(name, f) for f in files if is_name(f.name)}

    def tag_of(self, ref: Ref) -> list[str]:
        """The tags that point to this version."""
        return [tag for tag, (version, _) in self.tags(ref.name).items() if version == ref.version]

    def place(self, staging: Path, name: str) -> Ref:
        """Makes the folder `staging` the next version of `name`, by one rename, and returns its ref.

        Raises OSError.
        """
        folder = self.root / name
        durable.make_dir(folder)
        number = self.next_number(name)
        while True:
            target = folder / f"v{number}"
            # a rename onto an empty folder would succeed: what exists in any form is passed over
            if not os.path.lexists(target):
                try:
                    durable.rename(staging, target)
                    return Ref(name, number)
                except OSError:
                    if not os.path.lexists(target) or not staging.exists():
                        raise
            number += 1

    def _folders(self) -> list[str]:
        try:
            found = sorted(p.name for p in self.root.iterdir() if p.is_dir())
        except OSError:
            return []
        return [name for name in found if is_name(name)]

    def _taken(self, name: str) -> list[int]:
        try:
            entries = os.listdir(self.root / name)  # noqa: PTH208
        except OSError:
            return []
        return sorted(n for n in map(version_number, entries) if n is not None)

    def _check_format(self) -> None:
        marker = self.root / "store.json"
        try:
            body = json.loads(marker.read_bytes())
            found = int(body["store_format"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            raise IntegrityError(
                f"{marker}: not the marker of a store",
                hint='put back {"store_format": 1, "id": …} or use another --store',
            ) from None
        if found > STORE_FORMAT:
            raise IntegrityError(
                f"{self.root} was made by a newer zephyrctl (format {found}; this one reads {STORE_FORMAT})",
                hint="pip install --upgrade zephyrctl",
            )

    def _read_tag(self, name: str, path: Path) -> tuple[int, str]:
        try:
            body = json.loads(path.read_bytes())
            return int(body["version"]), str(body["manifest"])
        except (OSError, ValueError, KeyError, TypeError):
            raise IntegrityError(
                f"{name}:{path.name}: the tag file cannot be read",
                hint=f"set it again: zephyrctl artifacts tag {name}@vN {path.name}",
            ) from None

    def _tagged(self, asked: Asked) -> Artifact:
        path = self.root / asked.name / "tags" / str(asked.tag)
        if not path.is_file():
            known = ", ".join(self.tags(asked.name)) or "none"
            raise RefNotFound(f"{asked.name} has no tag '{asked.tag}'", hint=f"its tags: {known}")
        version, digest = self._read_tag(asked.name, path)
        artifact = self.get(Ref(asked.name, version))
        if artifact.manifest.manifest_digest != digest:
            raise IntegrityError(
                f"{asked.name}:{asked.tag} points to {artifact.ref}, which is not what was tagged",
                hint=f"set it again: zephyrctl artifacts tag {artifact.ref} {asked.tag}",
            )
        return artifact

    def _by_digest(self, name: str, digest: str) -> Artifact:
        for _, found in self.scan(name):
            if isinstance(found, Artifact) and found.digest.startswith(digest):
                return found
        raise RefNotFound(
            f"no version of {name} has the digest {digest}", hint=f"zephyrctl artifacts ls {name}"
        )

    def _no_version(self, ref: Ref) -> RefNotFound:
        known = ", ".join(f"v{n}" for n in self.numbers(ref.name)) or "none"
        unfinished = (self.root / ref.name / f"v{ref.version}").exists()
        why = " (the folder has no manifest, so it is no finished version)" if unfinished else ""
        return RefNotFound(f"there is no {ref} in {self.root}{why}", hint=f"versions of {ref.name}: {known}")

    def _no_name(self, name: str) -> RefNotFound:
        known = self.names()
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        if near:
            hint = "did you mean " + " or ".join(near) + "?"
        elif known:
            hint = "there are: " + ", ".join(known[:20])
        else:
            hint = "the store is empty; --store DIR or ZEPHYRCTL_STORE says where it is"
        return RefNotFound(f"there is no artifact '{name}' in {self.root}", hint=hint)

    def _remake(self, ref: Ref) -> str:
        return (
            f"bring {FILE_NAME} back from a copy, or remove the version (zephyrctl artifacts rm {ref} --yes) "
            "and run its command again; replies already paid for come from the ledger"
        )


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
