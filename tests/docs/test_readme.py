"""README.md and examples/ci.sh stay true: their commands are run as written, the demo as `demo --fast`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
LINES = [
    line[2:].split("  #")[0].strip()
    for block in CONSOLE
    for line in block.splitlines()
    if line.startswith("$ ")
]


def _run(command: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        env={**os.environ, "PATH": path, **extra},
        capture_output=True,
        text=True,
        check=False,
    )


def test_readme_has_the_lines_a_newcomer_needs() -> None:
    assert LINES[:2] == ["pip install 'zephyrctl[demo]'", "zephyrctl demo"]
    assert {"make demo", "make test"} <= set(LINES)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_make_lines_exist(line: str) -> None:
    done = _run(f"{line} --dry-run", ROOT)
    assert done.returncode == 0, done.stderr


def test_pip_line_names_an_extra_that_exists() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in re.findall(r"zephyrctl\[(\w[\w-]*)\]", README):
        assert name in extras


@pytest.mark.xdist_group("training")
def test_commands_run_as_written(tmp_path: Path) -> None:
    refs = re.compile(r"^[a-z0-9._-]+@v\d+$")
    for line in LINES:
        if not line.startswith("zephyrctl "):
            continue
        command = "zephyrctl demo --fast" if line == "zephyrctl demo" else line
        done = _run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
        if "artifacts" not in command and "demo" not in command:
            assert refs.match(done.stdout.strip()), done.stdout
    assert (tmp_path / "ckpt" / "dpo-e3" / "config.json").is_file()


@pytest.mark.xdist_group("training")
def test_the_ci_script_runs(tmp_path: Path) -> None:
    script = (ROOT / "examples" / "ci.sh").read_text(encoding="utf-8")
    assert "set -euo pipefail" in script
    assert "\nzephyrctl dpo --init ckpt/sft-e1 --epochs 3\n" in script
    done = _run(str(ROOT / "examples" / "ci.sh"), tmp_path, ROWS="60")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "eval-dpo-e3@v1" in done.stdout


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / target).exists(), target


def test_exit_code_table_is_complete() -> None:
    from zephyrctl import errors

    listed = {int(n) for row in re.findall(r"^\| ([\d, ]+) \|", README, re.MULTILINE) for n in row.split(",")}
    codes = {
        cls.exit_code
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.ZephyrError)
    }
    assert codes - {1} <= listed
