from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zephyrctl.artifacts.table import TableWriter, arrow_schema, count_rows, read_rows, reject_schema
from zephyrctl.errors import IntegrityError
from zephyrctl.records import ROW_TYPES, FeedbackRow, Message, PreferenceRow, PromptRow

MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))


def test_schemas_come_from_the_row_types() -> None:
    schema = arrow_schema(PreferenceRow)
    assert schema.names == list(PreferenceRow.model_fields)
    assert schema.field("chosen").type == MESSAGES
    assert schema.field("score_chosen").type == pa.float64()
    assert schema.field("tie").type == pa.bool_()
    ratings = arrow_schema(FeedbackRow).field("completions").type.value_type.field("ratings").type
    assert ratings.value_type.field("position").type == pa.int64()


@pytest.mark.parametrize("kind", sorted(ROW_TYPES))
def test_every_row_type_has_a_schema_without_null_columns(kind: str) -> None:
    def leaves(kind: pa.DataType) -> list[pa.DataType]:
        if pa.types.is_list(kind):
            return leaves(kind.value_type)
        if pa.types.is_struct(kind):
            return [leaf for n in range(kind.num_fields) for leaf in leaves(kind.field(n).type)]
        return [kind]

    for field in arrow_schema(ROW_TYPES[kind]):
        assert all(not pa.types.is_null(leaf) for leaf in leaves(field.type))


def write(path: Path, count: int) -> TableWriter:
    writer = TableWriter(path, arrow_schema(PromptRow))
    for n in range(count):
        asked = [Message(role="user", content=f"question {n}")]
        writer.add(PromptRow(prompt_id=str(n), prompt=asked).model_dump())
    writer.close()
    return writer


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_rows_keep_their_order(tmp_path: Path, count: int) -> None:
    path = tmp_path / "x.parquet"
    assert write(path, count).rows == count
    assert [row["prompt_id"] for row in read_rows(path)] == [str(n) for n in range(count)]
    assert count_rows(path) == count


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", 600), write(tmp_path / "two", 600)
    assert one.file.sha256 == two.file.sha256
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_files_are_zstd_with_page_checksums(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, 500)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    raw = bytearray(path.read_bytes())
    raw[200] ^= 4
    path.write_bytes(bytes(raw))
    with pytest.raises(IntegrityError):
        count_rows(path)


def test_large_rows_are_streamed_in_row_groups_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    writer = TableWriter(path, reject_schema())
    text = "x" * 200_000
    for n in range(600):
        writer.add({"where": str(n), "reason": "", "detail": "", "row": text})
    writer.close()
    meta = pq.ParquetFile(path).metadata
    assert meta.num_row_groups >= 2
    assert sum(1 for _ in read_rows(path, batch=16)) == 600
    assert all(meta.row_group(n).num_rows * len(text) <= 64 << 20 for n in range(meta.num_row_groups))


def test_text_that_no_table_can_hold_is_refused_with_its_place(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "x.parquet", reject_schema())
    writer.add({"where": "a", "reason": "b", "detail": "c", "row": "\ud800"})
    with pytest.raises(IntegrityError, match=r"among 1-1"):
        writer.close()
    writer.abandon()


def test_a_file_that_is_no_parquet_is_an_integrity_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for raw in (b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1"):
        path.write_bytes(raw)
        with pytest.raises(IntegrityError):
            list(read_rows(path))
