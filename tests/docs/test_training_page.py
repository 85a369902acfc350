"""docs/training.md and README.md name commands, options, settings and editions that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _commands(text: str) -> list[str]:
    """The zephyrctl lines of a page's shell blocks and tables, continued lines joined, comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(zephyrctl (?:sft|dpo) [^`]+)`", text)
    return sorted({line.split("  #")[0].strip() for line in lines if line.startswith("zephyrctl ")})


def _parsed(line: str) -> tuple[str, dict[str, Any]]:
    """The command a line names and its parameters. Raises click's errors for what does not exist."""
    from typer.main import get_command

    from zephyrctl.cli.app import app

    words = shlex.split(line)
    command: Any = get_command(app)
    context = command.make_context("zephyrctl", words[1:])
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, list(rest), parent=context)
    return context.command_path, context.params


@pytest.mark.parametrize("line", sorted({*_commands(PAGE), *_commands(README)}))
def test_commands_shown_are_read(line: str) -> None:
    from zephyrctl.cli.settled import stage_config

    path, given = _parsed(line)
    stage = path.split()[-1]
    for one in given.get("sets") or []:
        assert one.partition("=")[0] in stage_config(stage).model_fields, one
    if stage == "slurm":
        _parsed(shlex.join(["zephyrctl", *given["command"]]))


def test_every_edition_is_in_the_table_and_none_that_is_not() -> None:
    from zephyrctl.editions.load import load, names

    training = {name for name in names() if "sft" in load(name).sections}
    assert set(re.findall(r"^\| `([a-z0-9./-]+)` \| ", PAGE, re.MULTILINE)) >= training
    named = set(re.findall(r"--edition ([\w./-]+)", PAGE + README))
    assert named <= set(names())


def test_links_lead_somewhere_on_the_page() -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_what_the_journal_holds_is_explained() -> None:
    from zephyrctl.training.watch import _BY_TASK, _KEPT, _RENAMED

    for name in (*_KEPT, *_BY_TASK["sft"], *_BY_TASK["dpo"]):
        assert f"`{_RENAMED.get(name, name)}`" in PAGE, name
