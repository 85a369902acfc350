"""Rows that come as Arrow batches give the same file as rows that come one by one."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.artifacts import table
from zephyrctl.artifacts.table import TableWriter, arrow_schema, read_batches, read_rows
from zephyrctl.errors import IntegrityError
from zephyrctl.records import Message, PreferenceRow

SCHEMA = arrow_schema(PreferenceRow)


def rows(count: int) -> list[dict[str, object]]:
    made = []
    for n in range(count):
        prompt = [Message(role="user", content=f"question {n} " * (n % 7))]
        sides = [[Message(role="assistant", content=f"{side} {n}\u00e9" * (n % 11))] for side in "ab"]
        row = PreferenceRow(
            prompt_id=str(n),
            prompt=[*prompt, *prompt][: 1 + n % 2],
            chosen=sides[0],
            rejected=[*sides[1], Message(role="assistant", content="end")],
            score_chosen=None if n % 3 else n / 7,
            chosen_model=None if n % 5 else "m",
        )
        made.append(row.model_dump())
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@given(st.lists(st.tuples(st.integers(1, 700), st.booleans()), min_size=1, max_size=6), st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_bytes_do_not_depend_on_how_the_rows_came(
    folder: Path, parts: list[tuple[int, bool]], many_groups: bool
) -> None:
    before, table._BYTES_IN_GROUP = table._BYTES_IN_GROUP, 40_000 if many_groups else table._BYTES_IN_GROUP
    try:
        everything = rows(sum(count for count, _ in parts))
        digests = []
        for name in ("one by one", "mixed"):
            path = folder / name
            path.unlink(missing_ok=True)
            writer, start = TableWriter(path, SCHEMA), 0
            for count, as_batch in parts:
                part = everything[start : start + count]
                start += count
                if as_batch and name == "mixed":
                    whole = pa.RecordBatch.from_pylist([{}, *part], schema=SCHEMA)
                    writer.add_batch(whole.slice(1))  # buffers that begin elsewhere must not matter
                else:
                    for row in part:
                        writer.add(row)
            writer.close()
            assert writer.rows == len(everything)
            digests.append(writer.file.sha256)
        assert digests[0] == digests[1]
        assert list(read_rows(folder / "mixed")) == everything
    finally:
        table._BYTES_IN_GROUP = before


def test_a_batch_of_another_schema_is_refused(folder: Path) -> None:
    writer = TableWriter(folder / "other", SCHEMA)
    with pytest.raises(IntegrityError, match="another schema"):
        writer.add_batch(pa.RecordBatch.from_pylist([{"prompt_id": "1"}]))
    writer.abandon()


def test_only_the_columns_asked_for_are_read(folder: Path) -> None:
    path = folder / "columns"
    writer = TableWriter(path, SCHEMA)
    for row in rows(300):
        writer.add(row)
    writer.close()
    found = list(read_batches(path, ["prompt_id", "chosen.list.element.content"], 128))
    assert [batch.num_rows for batch in found] == [128, 128, 44]
    assert found[0].schema.names == ["prompt_id", "chosen"]
    assert [f.name for f in found[0].schema.field("chosen").type.value_type] == ["content"]
