"""Rows as Parquet: schemas derived from the row types, streamed writing, checked reading."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from zephyrctl.artifacts.durable import NewFile
from zephyrctl.errors import IntegrityError

if TYPE_CHECKING:
    import pyarrow as pa

REJECT_COLUMNS = ("where", "reason", "detail", "row")
_ROWS_IN_BLOCK = 256
_BYTES_IN_GROUP = 32 << 20
_SCALARS = {str: "string", int: "int64", float: "float64", bool: "bool_"}


def arrow_schema(row_type: type[BaseModel]) -> pa.Schema:
    """The Arrow schema of a row type: stated by the type alone, so that empty and full splits agree."""
    import pyarrow as pa

    return pa.schema([pa.field(n, _arrow_type(f.annotation)) for n, f in row_type.model_fields.items()])


def reject_schema() -> pa.Schema:
    """The Arrow schema of rejected rows: four columns of text."""
    import pyarrow as pa

    return pa.schema([pa.field(name, pa.string()) for name in REJECT_COLUMNS])


def _arrow_type(annotation: Any) -> pa.DataType:
    import pyarrow as pa

    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _arrow_type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        (inner,) = [a for a in arguments if a is not type(None)]
        return _arrow_type(inner)
    if origin is list:
        return pa.list_(_arrow_type(arguments[0]))
    if origin is typing.Literal:
        return pa.string()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct([pa.field(n, _arrow_type(f.annotation)) for n, f in annotation.model_fields.items()])
    return getattr(pa, _SCALARS[annotation])()


class TableWriter:
    """Writes rows to one new Parquet file, in the order given: zstd, page checksums, row groups of about 32 MB.

    The bytes depend on the rows alone: not on whether they came one by one or as Arrow batches, nor on the size of
    these.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self.path = path
        self.rows = 0
        self._schema = schema
        self._pending: list[Mapping[str, Any]] = []
        self._loose: list[pa.RecordBatch] = []
        self._loose_rows = 0
        self._blocks: list[pa.RecordBatch] = []
        self._bytes = 0
        self.file = NewFile(path)
        self._writer = pq.ParquetWriter(self.file, schema, compression="zstd", write_page_checksum=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes one row; raises IntegrityError when a value does not fit the schema."""
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) >= _ROWS_IN_BLOCK:
            self._convert()

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Takes the rows of an Arrow batch; raises IntegrityError when it has another schema than the file."""
        if not batch.schema.equals(self._schema):
            raise IntegrityError(f"{self.path.name}: a batch of another schema cannot be stored here")
        self._convert()
        self.rows += batch.num_rows
        self._take(batch)

    def close(self) -> None:
        """Writes what is left; afterwards the file is whole and synced."""
        self._convert()
        self._cut(at_least=1)
        self._group()
        self._writer.close()
        self.file.close()

    def abandon(self) -> None:
        """Lets go of the file, whatever was written."""
        self.file.abandon()

    def _convert(self) -> None:
        import pyarrow as pa

        if not self._pending:
            return
        try:
            batch = pa.RecordBatch.from_pylist(self._pending, schema=self._schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
            first = self.rows - len(self._pending) + 1
            raise IntegrityError(
                f"{self.path.name}: a row among {first}-{self.rows} cannot be stored: {error}",
                hint="text must be Unicode without lone surrogates",
            ) from error
        self._pending = []
        self._take(batch)

    def _take(self, batch: pa.RecordBatch) -> None:
        self._loose.append(batch)
        self._loose_rows += batch.num_rows
        if self._loose_rows >= _ROWS_IN_BLOCK:
            self._cut(at_least=_ROWS_IN_BLOCK)

    def _cut(self, at_least: int) -> None:
        """Cuts the rows at hand into blocks, and these into row groups: always at the same rows of the file."""
        import pyarrow as pa

        start, loose = 0, self._loose
        whole = loose[0] if len(loose) == 1 else pa.concat_batches(loose) if loose else None
        while whole is not None and whole.num_rows - start >= at_least:
            block = whole.slice(start, _ROWS_IN_BLOCK)
            start += block.num_rows
            self._blocks.append(block)
            self._bytes += sum(_size(column) for column in block.columns)
            if self._bytes >= _BYTES_IN_GROUP:
                self._group()
        self._loose = [whole.slice(start)] if whole is not None and start < whole.num_rows else []
        self._loose_rows = sum(b.num_rows for b in self._loose)

    def _group(self) -> None:
        import pyarrow as pa

        if self._blocks:
            # one chunk for each column: where pages end must not depend on how the rows came
            table = pa.Table.from_batches(self._blocks, schema=self._schema).combine_chunks()
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
            self._blocks, self._bytes = [], 0


def _size(array: pa.Array) -> int:
    """The bytes of an array's values and offsets, whatever buffers it shares with others."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(array.type):
        return sum(_size(child) for child in array.flatten())
    if pa.types.is_list(array.type):
        return 4 * len(array) + _size(array.flatten())
    if pa.types.is_string(array.type):
        return 4 * len(array) + (pc.sum(pc.binary_length(array)).as_py() or 0)
    return 8 * len(array)


def count_rows(path: Path) -> int:
    """Reads a Parquet file again from end to end, verifying every page's checksum, and counts its rows.

    Raises IntegrityError when it cannot be read.
    """
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            return sum(batch.num_rows for batch in file.iter_batches(batch_size=4096))
    except Exception as error:
        raise IntegrityError(f"{path}: cannot be read back: {error}") from error


def read_rows(path: Path, batch: int = 256) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file as dicts, a batch at a time. Raises IntegrityError when it is not one."""
    for found in read_batches(path, batch=batch):
        try:
            rows = found.to_pylist()
        except UnicodeDecodeError as error:
            raise IntegrityError(f"{path}: damaged Parquet data ({error})") from error
        yield from rows


def read_batches(
    path: Path, columns: Sequence[str] | None = None, batch: int = 256
) -> Iterator[pa.RecordBatch]:
    """A Parquet file as Arrow batches of at most `batch` rows, of these columns only (`completions.list.element.text`
    names one inside a list of structs). Raises IntegrityError when it is no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{path}: not a readable Parquet file ({error})") from error
    with file:
        batches = file.iter_batches(batch_size=batch, columns=columns)
        while True:
            try:
                found = next(batches)
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise IntegrityError(f"{path}: damaged Parquet data ({error})") from error
            yield found
