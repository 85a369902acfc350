import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.cli.console import Console, plain_table, printable
from zephyrctl.cli.options import Session
from zephyrctl.errors import BadRow
from zephyrctl.events import Note, Progress, Table, Warning_


@given(st.text())
def test_printable_holds_no_control_character(text: str) -> None:
    shown = printable(text)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert printable(shown) == shown


def test_words_go_to_stderr_and_the_result_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(Session())
    console(Note("reading"))
    console(Warning_("few rows"))
    console(Progress("ask", 3, 3))
    console(Table("", ("a",), (("1",),)))
    console.result("prefs@v1", {"ref": "prefs@v1"})
    out, err = capsys.readouterr()
    assert out == "prefs@v1\n"
    assert "reading\n" in err
    assert "warning: few rows\n" in err
    assert "ask: 3/3\n" in err


def test_quiet_keeps_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(Session(quiet=True))
    console(Note("reading"))
    console(Warning_("few rows"))
    assert capsys.readouterr().err == "warning: few rows\n"


def test_json_result_and_failure(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(Session(json_=True))
    console.result("x@v1", {"ref": "x@v1"})
    assert json.loads(capsys.readouterr().out) == {"ref": "x@v1"}
    console.failure(BadRow("f.jsonl:2", "not JSON"))
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == 5
    assert "error: f.jsonl:2: not JSON\n" in err


def test_plain_progress_is_throttled(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(Session())
    for i in range(1, 101):
        console(Progress("ask", i, 100))
    assert len(capsys.readouterr().err.splitlines()) <= 2


def test_table_is_aligned() -> None:
    assert plain_table(("name", "n"), (("a", "1"), ("long", "22"))) == "name  n\n----  --\na     1\nlong  22"
