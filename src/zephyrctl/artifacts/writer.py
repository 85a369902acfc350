"""How a version comes to be: rows and files are staged, checked, and made visible by one rename.

The order is the point: sync the files, read them back, write the manifest last, sync the folders, rename,
sync the parent. A crash at any moment leaves the version absent or whole.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zephyrctl.artifacts import durable, table
from zephyrctl.artifacts import manifest as manifests
from zephyrctl.artifacts.artifact import SPLITS, Artifact
from zephyrctl.artifacts.background import TOLD, ancestors
from zephyrctl.artifacts.card import card
from zephyrctl.artifacts.digests import hash_file
from zephyrctl.artifacts.links import link_model
from zephyrctl.artifacts.manifest import FileEntry, InputRef, Manifest, World
from zephyrctl.artifacts.provenance import code, provenance
from zephyrctl.artifacts.ref import Ref, check_name
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.worklog import WorkLog
from zephyrctl.config import StageConfig
from zephyrctl.errors import EnvironmentFault, IntegrityError, StageRejected, UsageError
from zephyrctl.events import Emit
from zephyrctl.records import ROW_TYPES, SCHEMAS, Record
from zephyrctl.redact import redact

if TYPE_CHECKING:
    import pyarrow as pa

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Frame:
    """What all outputs of one step share.

    `attempt` is one run of the step, over as many restarts as it takes.
    """

    store: Store
    config: StageConfig
    inputs: tuple[InputRef, ...]
    world: World
    key: str
    edition: str | None
    attempt: str
    folder: Path
    again: bool
    emit: Emit

    def earlier_side(self, name: str) -> Artifact | None:
        """The side output `name` that this step already committed, None where it did not."""
        for _, found in self.store.scan(name):
            if isinstance(found, Artifact) and found.manifest.side and found.manifest.step_key == self.key:
                same = found.manifest.provenance.get("attempt") == self.attempt
                return found if same or not self.again else None
        return None


class Staging:
    """A version in the making.

    Files put below `path` become the version; `scratch` is kept between runs until then. `counts`,
    `headline`, `teachers`, `templates` and `extra` go into the manifest. `existing` is set for a side output
    that an earlier run of the step already committed: what is written here is then dropped.
    """

    def __init__(self, frame: Frame, name: str, kind: str, *, side: bool = False) -> None:
        self.frame = frame
        self.name = check_name(name)
        self.kind = kind
        self.is_side = side
        self.path = frame.folder / (f"side-{name}" if side else "staging")
        self.scratch = frame.folder / "scratch"
        self.counts: dict[str, Any] = {}
        self.headline: dict[str, Any] = {}
        self.teachers: list[dict[str, Any]] = []
        self.templates: dict[str, str] = {}
        self.extra: dict[str, Any] = {}
        self.existing = frame.earlier_side(name) if side else None
        self.artifact: Artifact | None = None
        self.log = WorkLog(frame.folder / "log.jsonl")
        self._writers: dict[str, table.TableWriter] = {}
        self._splits: dict[str, str] = {}
        self._failed = False
        self._reasons: collections.Counter[str] = collections.Counter()
        with durable.faults(self.path):
            durable.remove_tree(self.path)
            durable.make_dir(self.path)
            durable.make_dir(self.scratch)

    def write_rows(self, split: str, rows: Iterable[Record]) -> int:
        """Appends rows to a split, in the order given, and says how many; may be called again for more.

        Raises IntegrityError for text that cannot be stored, EnvironmentFault when the disk is full.
        """
        row_type = self._row_type(split)
        written = 0
        for row in rows:
            if not isinstance(row, row_type):
                raise UsageError(f"a {type(row).__name__} cannot be a row of kind '{self.kind}'")
            with durable.faults(self.path):
                self._data(split, row_type).add(row.model_dump())
            written += 1
        return written

    def write_batch(self, split: str, batch: pa.RecordBatch) -> int:
        """`write_rows` for rows that stand in an Arrow batch already, with the columns of the kind's row type.

        The rows are trusted: they were made from rows that were checked. The file is the same, byte for byte.
        Raises IntegrityError for another schema, EnvironmentFault when the disk is full.
        """
        row_type = self._row_type(split)
        if batch.num_rows:
            with durable.faults(self.path):
                self._data(split, row_type).add_batch(batch)
        return int(batch.num_rows)

    def write_rejects(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Appends dropped rows (`where`, `reason`, `detail`, `row`:

        JSON text or anything JSON can hold); may be called again.
        """
        written = 0
        for raw in rows:
            row = {name: _reject_text(raw.get(name)) for name in table.REJECT_COLUMNS}
            self._reasons[row["reason"]] += 1
            with durable.faults(self.path):
                self._table("rejects/train-00000-of-00001.parquet", table.reject_schema).add(row)
            written += 1
        return written

    def write_text(self, relative: str, text: str) -> None:
        """Puts one new text file into the version. Raises FileExistsError when it is there already."""
        path = self._inside(relative)
        with durable.faults(path):
            durable.make_dir(path.parent)
            durable.write_new(path, text.encode("utf-8"))

    def copy_file(self, source: Path, relative: str) -> None:
        """Puts the bytes of another file into the version, streamed."""
        path = self._inside(relative)
        with durable.faults(path), source.open("rb") as file:
            durable.make_dir(path.parent)
            new = durable.NewFile(path)
            try:
                while block := file.read(1 << 20):
                    new.write(block)
                new.close()
            finally:
                new.abandon()

    @contextlib.contextmanager
    def side(self, name: str, kind: str) -> Iterator[Staging]:
        """A side output: a version of its own, committed when the block ends without an error, never doubled
        by a restart.
        """
        names = sorted({*side_names(self.frame.folder), name})
        with durable.faults(self.frame.folder):
            durable.replace(self.frame.folder / "sides.json", json.dumps(names).encode())
        staging = Staging(self.frame, name, kind, side=True)
        try:
            yield staging
            staging.commit()
        finally:
            staging.abandon()

    def sides(self) -> dict[str, str]:
        """The side outputs committed so far by all runs of this attempt: name to ref."""
        found = {name: self.frame.earlier_side(name) for name in side_names(self.frame.folder)}
        return {name: str(artifact.ref) for name, artifact in found.items() if artifact is not None}

    def commit(self) -> Artifact:
        """The finished version.

        Raises StageRejected when no rows are left, EnvironmentFault when the disk refuses, IntegrityError
        when what was written cannot be read back. After any of these nothing is visible and the same command
        can be run again.
        """
        if self.artifact is not None:
            return self.artifact
        if self._failed:
            raise EnvironmentFault(
                f"{self.name}: an earlier commit of this run failed", hint="run the command again"
            )
        self._failed = True
        if self.existing is not None:
            self.abandon()
            with durable.faults(self.path):
                durable.remove_tree(self.path)
            self.artifact = self.existing
            if self.kind == "model":
                link_model(self.frame.store, self.name, self.frame.emit)
            return self.existing
        with durable.faults(self.path):
            entries = self._finish_files()
            made = self._manifest(entries)
            behind = ancestors(self.frame.store, self.frame.inputs) if self.kind in TOLD else []
            entries.append(self._add("README.md", card(made, behind).encode("utf-8")))
            if told := _read(self.log.path):
                entries.append(self._add("log.jsonl", told))
            made.files = sorted(entries, key=lambda e: e.path)
            raw = manifests.render(made)
            self._add(manifests.FILE_NAME, raw)
            durable.sync_dirs(self.path)
            ref = self.frame.store.place(self.path, self.name)
        folder = self.frame.store.root / self.name
        self.artifact = Artifact(
            ref,
            folder / f"v{ref.version}",
            manifests.parse(raw, folder / manifests.FILE_NAME),
            self.frame.store.cache,
        )
        self._settle(folder, ref)
        return self.artifact

    def abandon(self) -> None:
        """Lets go of open files. What was staged stays until the next run of the step clears it."""
        for writer in self._writers.values():
            writer.abandon()

    def _row_type(self, split: str) -> type[Record]:
        row_type = ROW_TYPES.get(self.kind)
        if row_type is None:
            raise UsageError(f"an artifact of kind '{self.kind}' has no rows")
        if split not in SPLITS:
            raise UsageError(f"'{split}' is no split; there are: {', '.join(SPLITS)}")
        return row_type

    def _data(self, split: str, row_type: type[Record]) -> table.TableWriter:
        relative = f"data/{split}-00000-of-00001.parquet"
        self._splits[relative] = split
        return self._table(relative, lambda: table.arrow_schema(row_type))

    def _table(self, relative: str, schema: Callable[[], pa.Schema]) -> table.TableWriter:
        writer = self._writers.get(relative)
        if writer is None:
            path = self.path / relative
            durable.make_dir(path.parent)
            writer = self._writers[relative] = table.TableWriter(path, schema())
        return writer

    def _finish_files(self) -> list[FileEntry]:
        for writer in self._writers.values():
            writer.close()
        entries = [self._entry(path) for path in sorted(_files(self.path))]
        if not any(manifests.is_content(self.kind, e.path) for e in entries):
            reasons = (
                ", ".join(f"{count} {reason}" for reason, count in self._reasons.most_common())
                or "none were made"
            )
            raise StageRejected(
                f"{self.name}: no rows left to keep ({reasons})"
                if self.kind in ROW_TYPES
                else f"{self.name}: no files made",
                hint="look at the reasons above; nothing was committed",
            )
        return entries

    def _entry(self, path: Path) -> FileEntry:
        relative = path.relative_to(self.path).as_posix()
        if self.kind == "model" and path.suffix in PICKLES:
            raise IntegrityError(f"{self.name}: {relative} is a pickle, and no artifact holds one")
        writer = self._writers.get(relative)
        if writer is None:
            durable.sync_file(path)
        durable.read_only(path)
        sha256 = hash_file(path)
        if writer is not None and (sha256 != writer.file.sha256 or table.count_rows(path) != writer.rows):
            raise IntegrityError(f"{path}: what was written reads back differently; look at the disk")
        return FileEntry(
            path=relative,
            size=path.stat().st_size,
            sha256=sha256,
            rows=writer.rows if writer else None,
            split=self._splits.get(relative),
        )

    def _add(self, relative: str, data: bytes) -> FileEntry:
        path = self.path / relative
        file = durable.write_new(path, data)
        durable.read_only(path)
        return FileEntry(path=relative, size=file.size, sha256=file.sha256)

    def _manifest(self, entries: list[FileEntry]) -> Manifest:
        frame, schema = self.frame, SCHEMAS[self.kind]
        counts: dict[str, Any] = {}
        if self.kind in ROW_TYPES:
            splits = {s: sum(e.rows or 0 for e in entries if e.split == s) for s in SPLITS}
            counts = {"rows": sum(splits.values()), "splits": {s: n for s, n in splits.items() if n}}
        if self._reasons:
            counts["rejects"] = dict(sorted(self._reasons.items()))
        return Manifest(
            schema=manifests.SCHEMA,
            kind=self.kind,
            kind_version=schema,
            name=self.name,
            world=frame.world,
            files=entries,
            counts={**counts, **self.counts},
            inputs=list(frame.inputs),
            stage=frame.config.stage,
            stage_version=frame.config.stage_version,
            config=frame.config.model_dump(mode="json"),
            edition=frame.edition,
            seed=frame.config.seed,
            step_key=frame.key,
            side=self.is_side,
            sides={} if self.is_side else self.sides(),
            teachers=self.teachers,
            templates=self.templates,
            headline=self.headline,
            content_digest=manifests.content_digest(self.kind, schema, entries),
            code=code(),
            provenance=provenance(frame.attempt),
            note=None if frame.config.note is None else redact(frame.config.note),
            **self.extra,
        )

    def _settle(self, folder: Path, ref: Ref) -> None:
        store = self.frame.store
        try:
            durable.sync_dir(folder)
        except OSError as error:
            raise EnvironmentFault(
                f"{ref} was committed, but the disk could not confirm it ({error.strerror})",
                hint="run the same command again; it finds the result or makes it anew",
            ) from error
        if self.artifact is not None:
            for entry in self.artifact.manifest.files:
                store.cache.remember(self.artifact.path / entry.path, entry.sha256)
        if self.kind == "model":
            link_model(store, self.name, self.frame.emit)

    def _inside(self, relative: str) -> Path:
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts:
            raise UsageError(f"'{relative}' is not a path inside an artifact")
        return self.path / parts


def side_names(folder: Path) -> list[str]:
    """The side outputs that a step's unfinished attempt has begun; its work folder is `folder`."""
    try:
        return [str(name) for name in json.loads((folder / "sides.json").read_bytes())]
    except (OSError, ValueError, TypeError):
        return []


def _files(top: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder, name)
            if not stat.S_ISREG(path.lstat().st_mode):
                raise IntegrityError(f"{path}: only plain files can be part of an artifact")
            yield path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _reject_text(value: object) -> str:
    text = (
        value
        if isinstance(value, str)
        else ""
        if value is None
        else json.dumps(value, ensure_ascii=True, default=str)
    )
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
