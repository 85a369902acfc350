"""One version on disk: its manifest, and the only door to its files, which checks them first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from zephyrctl.artifacts import table
from zephyrctl.artifacts.digests import HashCache, hash_file
from zephyrctl.artifacts.manifest import FileEntry, Manifest, content_digest, is_checked
from zephyrctl.artifacts.ref import Ref
from zephyrctl.errors import IntegrityError, RefNotFound, WrongKind
from zephyrctl.records import ROW_TYPES, Record, explain

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "test")


@dataclass
class Artifact:
    """A version that exists. Its files are opened through its methods, or after `check()`."""

    ref: Ref
    path: Path
    manifest: Manifest
    cache: HashCache = field(repr=False)

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def digest(self) -> str:
        """The content digest: equal work, equal digest."""
        return self.manifest.content_digest

    @property
    def world(self) -> str:
        return self.manifest.world

    def check(self) -> Artifact:
        """This artifact, after the bytes of every file a reader may open were compared with the manifest.

        Weights whose size, times and inode are those of an earlier check are not read again.
        Raises IntegrityError naming the file and what differs.
        """
        for problem in self._problems(every=False):
            raise IntegrityError(f"{self.ref}: {problem}", hint=self.remake())
        return self

    def problems(self) -> list[str]:
        """Everything that differs from the manifest, all files read from the disk, no cache believed; empty
        when whole.
        """
        return list(self._problems(every=True))

    def rows(self, split: str | None = None) -> Iterator[tuple[str, str, Record]]:
        """`(where, split, row)` for every row, or those of one split, in stored order;

        `where` is `prefs@v1 row 12`. All files are checked before this returns. Raises IntegrityError, or
        WrongKind for a kind that has no rows.
        """
        row_type = ROW_TYPES.get(self.kind)
        if row_type is None:
            raise WrongKind(f"{self.ref} is a {self.kind} artifact, which has no rows")
        self.check()
        return self._rows(row_type, split)

    def batches(self, columns: Sequence[str], size: int) -> Iterator[tuple[int, str, pa.RecordBatch]]:
        """`(number of the first row, split, batch)`: these columns of all rows, in stored order, at most `size` rows at
        a time, as they were stored: no row type checks them.

        All files are checked before this returns. Raises IntegrityError.
        """
        self.check()
        return self._batches(columns, size)

    def count(self, split: str | None = None) -> int:
        """How many rows the manifest states, in all or in one split."""
        return sum(f.rows or 0 for f in self.data_files() if split in (None, f.split))

    def splits(self) -> list[str]:
        """The splits that have rows: train, test, then any other."""
        return list(dict.fromkeys(str(f.split) for f in self.data_files()))

    def rejects(self) -> Iterator[dict[str, Any]]:
        """The dropped rows (`where`, `reason`, `detail`, `row` as JSON text).

        All files are checked before this returns.
        """
        self.check()
        files = [self.path / f.path for f in self.manifest.files if f.path.startswith("rejects/")]
        return (row for path in files for row in table.read_rows(path))

    def read_text(self, relative: str) -> str:
        """The text of one file of this version, checked first.

        Raises RefNotFound when the manifest has no such file.
        """
        if all(f.path != relative for f in self.manifest.files):
            raise RefNotFound(f"{self.ref} has no file '{relative}'")
        self.check()
        return (self.path / relative).read_text(encoding="utf-8")

    def data_files(self) -> list[FileEntry]:
        """The entries of the Parquet files that hold rows, train first."""
        found = [f for f in self.manifest.files if f.path.startswith("data/") and f.rows is not None]
        rank = {split: n for n, split in enumerate(SPLITS)}
        return sorted(found, key=lambda f: (rank.get(str(f.split), len(rank)), f.path))

    def remake(self) -> str:
        """How to make this version again."""
        stage, ref = self.manifest.stage, self.ref
        if stage == "import":
            return (
                f"bring the file back from a copy, or: zephyrctl artifacts rm {ref} --yes, and import it anew"
            )
        if self.kind == "logprobs":  # no command of its own makes it
            return f"zephyrctl artifacts rm {ref} --yes; the next dpo that needs it asks the reference anew"
        return (
            f"bring the file back from a copy, or make it again: zephyrctl {stage} … --again "
            f"(settings: zephyrctl artifacts show {ref}); replies already paid for come from the ledger"
        )

    def _batches(self, columns: Sequence[str], size: int) -> Iterator[tuple[int, str, pa.RecordBatch]]:
        number = 1
        for entry in self.data_files():
            for batch in table.read_batches(self.path / entry.path, columns, size):
                yield number, str(entry.split), batch
                number += batch.num_rows

    def _rows(self, row_type: type[Record], split: str | None) -> Iterator[tuple[str, str, Record]]:
        number = 0
        for entry in self.data_files():
            if split is not None and entry.split != split:
                number += entry.rows or 0
                continue
            for raw in table.read_rows(self.path / entry.path):
                number += 1
                where = f"{self.ref} row {number}"
                try:
                    yield where, str(entry.split), row_type.model_validate(raw)
                except ValidationError as error:
                    raise IntegrityError(f"{where}: {explain(error)}", hint=self.remake()) from None

    def _problems(self, *, every: bool) -> Iterator[str]:
        found = False
        for problem in self._shape_problems(every=every):
            found = True
            yield problem
        if found:
            return
        for entry in self.manifest.files:
            if not every and not is_checked(entry.path):
                continue
            path = self.path / entry.path
            try:
                actual = hash_file(path) if every else self.cache.sha256(path)
            except OSError as error:
                yield f"{entry.path} cannot be read ({error.strerror})"
                continue
            if actual != entry.sha256:
                expected = entry.sha256[:12]
                yield f"{entry.path}: the content differs (sha256 {actual[:12]}…, expected {expected}…)"
        if every:
            manifest = self.manifest
            if (
                content_digest(manifest.kind, manifest.kind_version, manifest.files)
                != manifest.content_digest
            ):
                yield "the content digest in the manifest does not fit its own list of files"

    def _shape_problems(self, *, every: bool) -> Iterator[str]:
        listed = {entry.path for entry in self.manifest.files}
        for entry in self.manifest.files:
            if not every and not is_checked(entry.path):
                continue
            path = self.path / entry.path
            try:
                size = path.stat().st_size if path.is_file() else None
            except OSError:
                size = None
            if size is None:
                yield f"{entry.path} is missing ({entry.size} bytes expected)"
            elif size != entry.size:
                yield f"{entry.path}: {size} bytes found, {entry.size} expected"
        for path in self._read_by_loaders():
            relative = path.relative_to(self.path).as_posix()
            if relative not in listed and is_checked(relative):
                yield f"{relative} is not in the manifest; it was put there later"

    def _read_by_loaders(self) -> list[Path]:
        """The files that a loader of the whole folder would read, listed or not."""
        if self.kind == "model":
            # a stray adapter or chat template beside the weights would change what is loaded
            return sorted(p for p in self.path.iterdir() if p.is_file() and not p.name.startswith("."))
        found = [p for folder in ("data", "rejects") for p in (self.path / folder).rglob("*")]
        return sorted(p for p in found if not p.is_dir())
