"""A command line in an empty folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from zephyrctl.cli.app import run


@dataclass(frozen=True)
class Done:
    """One finished command."""

    code: int
    out: str
    err: str


Shell = Callable[..., Done]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs `zephyrctl ARGS` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> Done:
        capsys.readouterr()
        code = run(list(args))
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call
