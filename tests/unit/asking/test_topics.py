"""Topics: the shipped list, and lists of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.asking.topics import MAX_CHARACTERS, parse_topics, read_topics, topics
from zephyrctl.errors import IntegrityError, RefNotFound, UsageError


def test_the_shipped_list_is_broad() -> None:
    found = topics()
    assert len(found) >= 40
    assert len({topic.casefold() for topic in found}) == len(found)
    assert all(not topic.startswith("#") and topic == topic.strip() for topic in found)


def test_the_callers_list_is_its_own() -> None:
    topics().clear()
    assert topics()


def test_blank_lines_and_comments_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff# mine\n\n  Bees   and honey \r\n\t\n#x\nÉcoles".encode())
    assert read_topics(path) == ["Bees and honey", "Écoles"]


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (b"Bees\n\nbees\n", UsageError, r"t\.txt:3: 'bees' stands in line 1"),
        (b"Bees\n" + b"x" * (MAX_CHARACTERS + 1), UsageError, r"t\.txt:2: 201 characters"),
        (b"Bees\nB\xff", IntegrityError, r"t\.txt:2: not UTF-8 at byte 2"),
        (b"Bees\na\0b", UsageError, r"t\.txt:2: a NUL"),
        (b"# nothing\n\n", UsageError, r"t\.txt: no topics"),
        (b"", UsageError, r"t\.txt: no topics"),
    ],
)
def test_errors_name_the_line(raw: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_topics(raw, "t.txt")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RefNotFound, match=r"none\.txt"):
        read_topics(tmp_path / "none.txt")


@given(
    st.lists(
        st.text(st.characters(categories=["L"]), min_size=1, max_size=20), unique_by=str.casefold, min_size=1
    )
)
def test_what_is_written_is_read(names: list[str]) -> None:
    assert parse_topics("\n".join(names).encode(), "t") == names
