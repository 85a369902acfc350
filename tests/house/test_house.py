"""The rules of the house: floors, rooms, sizes, names, and what starting the program may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "zephyrctl"
FILES = sorted(SOURCE.rglob("*.py"))
ROOMS = ["importing", "gen_sft", "sft", "gen_prefs", "binarize", "dpo", "eval"]
HEAVY = [
    "torch",
    "transformers",
    "trl",
    "datasets",
    "pyarrow",
    "openai",
    "anthropic",
    "numpy",
    "accelerate",
    "sqlite3",
]
HOMELESS = {"util", "utils", "helper", "helpers", "common", "misc", "core", "base_utils"}


def test_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "entry", ["import zephyrctl.cli.app", "from zephyrctl.cli.app import run; run(['--help'])"]
)
def test_starting_imports_nothing_heavy(entry: str) -> None:
    script = f"{entry}\nimport sys\nsys.stderr.write(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_the_same_plan(room: str) -> None:
    folder = SOURCE / "stages" / room
    assert (folder / "config.py").is_file()
    assert (folder / "run.py").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_sizes_and_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert not HOMELESS & set(path.with_suffix("").relative_to(SOURCE).parts)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 75, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "a module without a docstring"


def test_only_the_command_line_prints_or_exits() -> None:
    for path in FILES:
        parts = path.relative_to(SOURCE).parts
        if parts[0] in ("cli", "__main__.py") or path.name == "build_base.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"print", "input", "sys.exit", "exit", "quit"}, f"{path}: {name}"


def test_package_data_is_in_place() -> None:
    for relative in (
        "editions/sandbox.yaml",
        "editions/zephyr-7b/paper.yaml",
        "editions/zephyr-h4.yaml",
        "asking/seed_tasks.jsonl",
        "asking/topics.txt",
        "asking/line_up.yaml",
        "artifacts/terms.yaml",
        "curation/phrases.yaml",
        "report/page.html",
        "report/page.css",
        "stages/gen_prefs/principles.yaml",
        "sandbox/base/model.safetensors",
        "py.typed",
    ):
        assert (SOURCE / relative).is_file()
