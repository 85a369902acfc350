import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.cli.console import Console, calls_line, plain_table
from zephyrctl.cli.options import Session
from zephyrctl.cli.plain import printable
from zephyrctl.errors import BadRow
from zephyrctl.events import Calls, Note, Progress, Table, Warning_


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


def test_the_line_of_paid_calls_tells_money_speed_and_trouble() -> None:
    event = Calls(
        "completions", 1200, 2000, replayed=100, in_flight=48, ceiling=64, requests_per_second=31.25,
        tokens_per_second=5210.4, limited=3, failures=2, spent=0.5, left=1.5, eta=3725.0,
    )  # fmt: skip
    assert calls_line(event) == (
        "completions: 1,200/2,000 · ETA 1h 02m · $0.50, $1.50 left · 2 failed · 3 × 429 · 31.2 req/s · 5,210 tok/s · "
        "48 of 64 in flight · 100 replayed"
    )


def test_what_is_not_known_is_left_out_of_the_line() -> None:
    assert calls_line(Calls("judgements", 5, 5, eta=10.0)) == "judgements: 5/5"


def test_nobody_is_asked_without_a_terminal() -> None:
    assert Console(Session()).asking() is None


@pytest.mark.parametrize(
    ("typed", "agreed"), [("y\n", True), ("YES\n", True), ("\n", False), ("no\n", False)]
)
def test_a_question_is_put_on_stderr(
    typed: str, agreed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(Session())
    console.tty = True
    answers = io.StringIO(typed)
    monkeypatch.setattr(answers, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", answers)
    ask = console.asking()
    assert ask is not None
    assert ask("Spend up to $12?") is agreed
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Spend up to $12? [y/N]" in shown.err
