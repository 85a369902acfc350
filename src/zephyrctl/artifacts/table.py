"""Rows as Parquet: schemas derived from the row types, streamed writing, checked reading."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from zephyrctl.artifacts.durable import NewFile
from zephyrctl.errors import IntegrityError

if TYPE_CHECKING:
    import pyarrow as pa

REJECT_COLUMNS = ("where", "reason", "detail", "row")
_ROWS_IN_BATCH = 256
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
    """Writes rows to one new Parquet file, in the order given: zstd, page checksums, row groups of at most
    about 64 MB.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self.path = path
        self.rows = 0
        self._schema = schema
        self._pending: list[Mapping[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self.file = NewFile(path)
        self._writer = pq.ParquetWriter(self.file, schema, compression="zstd", write_page_checksum=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes one row; raises IntegrityError when a value does not fit the schema."""
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) >= _ROWS_IN_BATCH:
            self._batch()

    def close(self) -> None:
        """Writes what is left; afterwards the file is whole and synced."""
        self._batch()
        self._group()
        self._writer.close()
        self.file.close()

    def abandon(self) -> None:
        """Lets go of the file, whatever was written."""
        self.file.abandon()

    def _batch(self) -> None:
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
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= _BYTES_IN_GROUP:
            self._group()

    def _group(self) -> None:
        import pyarrow as pa

        if self._batches:
            table = pa.Table.from_batches(self._batches, schema=self._schema)
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
            self._batches, self._bytes = [], 0


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
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{path}: not a readable Parquet file ({error})") from error
    with file:
        batches = file.iter_batches(batch_size=batch)
        while True:
            try:
                rows = next(batches).to_pylist()
            except StopIteration:
                return
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise IntegrityError(f"{path}: damaged Parquet data ({error})") from error
            yield from rows
