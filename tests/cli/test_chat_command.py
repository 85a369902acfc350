"""`zephyrctl chat`: answers on stdout, words on stderr, two models side by side."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from zephyrctl.cli import app as app_module
from zephyrctl.cli.chat import block, chat_cli, side_by_side

if TYPE_CHECKING:
    from conftest import Done, Shell


@pytest.fixture
def chat(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs `zephyrctl chat ARGS`; `typed` is what a person at a terminal types."""
    registered = [command.name for command in app_module.app.registered_commands]
    if "chat" not in registered:
        own = typer.Typer(pretty_exceptions_enable=False)
        own.callback()(lambda: None)
        own.command("chat")(chat_cli)
        monkeypatch.setattr(app_module, "app", own)

    def call(*args: str, typed: str | None = None) -> Done:
        terminal = io.StringIO(typed or "")
        terminal.isatty = lambda: typed is not None  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdin", terminal)
        return shell("chat", *args)

    return call


FAST = ("--max-tokens", "6", "--temperature", "0")


def test_one_model_and_many_prompts(chat: Callable[..., Done], tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("in the\nor or\n", encoding="utf-8")
    done = chat(str(tiny), "--prompt", "q.txt", *FAST, "--json")
    assert done.code == 0, done.err
    body = json.loads(done.out)
    assert [row["prompt"][0]["content"] for row in body["rows"]] == ["in the", "or or"]
    assert all(row["answers"][0][0]["tokens"] == 6 for row in body["rows"])
    shown = chat(str(tiny), "--prompt", "q.txt", *FAST, "--quiet")
    assert shown.err == ""
    assert shown.out.startswith("[1] in the\n")
    assert "[2] or or\n" in shown.out
    assert (
        len(json.loads(chat(str(tiny), "--prompt", "q.txt", "--rows", "1", *FAST, "--json").out)["rows"]) == 1
    )


def test_two_models_side_by_side(
    chat: Callable[..., Done], tiny: Path, make_tiny: Any, tmp_path: Path
) -> None:
    other = make_tiny(tmp_path / "other", seed=9, tied=False)
    lines = [{"turns": ["in the", "and then"]}, {"turns": ["or or"]}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    asked = ("--prompt", "q.jsonl", *FAST, "--json")
    both = json.loads(chat(str(tiny), str(other), *asked).out)
    assert len(both["models"]) == 2
    left, right = both["rows"][0]["answers"]
    assert len(left) == len(right) == 2, "the follow-up is asked too"
    assert left[0]["text"] != right[0]["text"]
    alone = json.loads(chat(str(other), *asked).out)
    assert [row["answers"][0] for row in alone["rows"]] == [row["answers"][1] for row in both["rows"]]
    drawn = [
        json.loads(chat(str(tiny), *asked, "--temperature", "1", "--seed", seed).out)["rows"]
        for seed in "556"
    ]
    assert drawn[0] == drawn[1] != drawn[2], "equal seeds, equal answers"


def test_a_conversation(chat: Callable[..., Done], tiny: Path) -> None:
    done = chat(str(tiny), *FAST, typed="in the\nor or\n/reset\nin the\n/quit\nnever read\n")
    assert done.code == 0, done.err
    answers = done.out.splitlines()
    assert answers[0] == answers[-1], "after /reset it begins anew"
    assert "talking to" in done.err
    assert "all forgotten" in done.err
    assert "cut after 6 tokens" in done.err
    two = chat(str(tiny), "sandbox", *FAST, typed="in the\n")
    assert two.code == 0, two.err
    assert " │ sandbox" in two.out.splitlines()[0]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("openai:gpt-4",), 2, "no model with weights"),
        (("ckpt/none",), 4, "ckpt/none"),
        (("sandbox", "ckpt/none"), 4, "ckpt/none"),
        (("sandbox:teacher",), 2, "no model with weights"),
    ],
)
def test_refusals(chat: Callable[..., Done], args: tuple[str, ...], code: int, words: str) -> None:
    done = chat(*args, typed="x\n")
    assert (done.code, done.out) == (code, ""), done.err
    assert words in done.err
    assert "what to do:" in done.err


def test_without_a_terminal_prompts_are_wanted(chat: Callable[..., Done], tiny: Path) -> None:
    done = chat(str(tiny))
    assert done.code == 2
    assert "--prompt -" in done.err


def test_columns() -> None:
    text = side_by_side(
        ["sft-e1@v1", "dpo-e3@v1"], ["one two three four five six seven", "short\n\n  kept"], 60
    )
    lines = text.splitlines()
    assert lines[0].split("│")[1].strip() == "dpo-e3@v1"
    assert all(len(line) <= 60 for line in lines)
    assert [line.split("│")[1].rstrip() for line in lines[2:5]] == [" short", "", "   kept"]
    assert (
        block(["q", "more"], ["m"], [["first", "second"]], 40, number=3) == "[3] q\nfirst\n    more\nsecond"
    )
