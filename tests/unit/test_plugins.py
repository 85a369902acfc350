"""Functions from outside: what is loaded, what is said when it cannot be, and that nothing else is run."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.plugins import load_function


def source(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_function_of_a_file_is_loaded_by_relative_and_absolute_path(tmp_path: Path) -> None:
    path = source(tmp_path, "def score(prompt, completion):\n    return len(completion)\n")
    for text in ("./mine.py:score", "mine.py:score", f"{path}:score"):
        loaded = load_function(text)
        assert loaded.function([], "four") == 4
        assert loaded.label == "mine.py:score"
        assert loaded.digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_changed_file_is_another_digest_and_another_function(tmp_path: Path) -> None:
    source(tmp_path, "def score(p, c):\n    return 1\n")
    before = load_function("./mine.py:score")
    source(tmp_path, "def score(p, c):\n    return 2\n")
    after = load_function("./mine.py:score")
    assert before.digest != after.digest
    assert (before.function([], ""), after.function([], "")) == (1, 2)


def test_loading_leaves_the_search_path_and_the_folder_as_they_were(tmp_path: Path) -> None:
    source(tmp_path, "import json\nfrom dataclasses import dataclass\n\n@dataclass\nclass A:\n    x: int\n\n"
                     "def score(p, c):\n    return A(json.loads(c)).x\n")  # fmt: skip
    before = list(sys.path)
    assert load_function("./mine.py:score").function([], "7") == 7
    assert sys.path == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.py"]


def test_what_lies_beside_the_file_is_not_importable(tmp_path: Path) -> None:
    source(tmp_path, "raise SystemExit('ran')\n", "beside.py")
    source(tmp_path, "\nimport beside\n")
    with pytest.raises(UsageError, match=r"mine\.py:2: ModuleNotFoundError") as error:
        load_function("./mine.py:score")
    assert "installed packages" in str(error.value.hint)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def score(:\n", r"mine\.py:1: SyntaxError"),
        ("x = 1\n\ny = x / 0\n", r"mine\.py:3: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", r"mine\.py:2: SystemExit"),
        ("def other():\n    pass\n", "mine.py has no function 'score'"),
        ("score = 3\n", "mine.py:score is of type int and cannot be called"),
        ("async def score(p, c):\n    return 1\n", "coroutine"),
    ],
)
def test_a_file_that_gives_no_function_is_a_usage_error_with_its_line(
    tmp_path: Path, text: str, told: str
) -> None:
    source(tmp_path, text)
    with pytest.raises(UsageError, match=told):
        load_function("./mine.py:score")


def test_a_missing_file_and_a_file_without_a_function_name() -> None:
    with pytest.raises(RefNotFound, match=r"no such file: nowhere\.py"):
        load_function("./nowhere.py:score")
    with pytest.raises(UsageError, match="names a file and no function"):
        load_function("./nowhere.py")
    Path("mine.py").write_text("", encoding="utf-8")
    for name in ("", "a.b", "1x"):
        with pytest.raises(UsageError, match="is no name of a function"):
            load_function(f"./mine.py:{name}")


def test_the_place_of_an_error_is_the_last_line_in_the_users_own_file(tmp_path: Path) -> None:
    source(tmp_path, "import json\n\ndef score(p, c):\n    x = 1\n    return json.loads(c)\n")
    loaded = load_function("./mine.py:score")
    with pytest.raises(ValueError, match="Expecting") as error:
        loaded.function([], "{")
    assert loaded.place_of(error.value) == "mine.py:5"
    assert loaded.place_of(ValueError("elsewhere")) == "mine.py"


def test_entry_points_are_found_by_name_and_only_the_named_one_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[str] = []

    class Entry(EntryPoint):
        def load(self) -> object:
            loaded.append(self.name)
            return hashlib.sha256 if self.name == "builtin" else super().load()

    points = [Entry("length", "textwrap:dedent", "g"), Entry("gone", "no_such_module:f", "g"),
              Entry("builtin", "x:y", "g")]  # fmt: skip
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points if group == "g" else [])
    found = load_function("length", "g")
    assert (found.label, found.function("  a")) == ("length", "a")
    assert found.digest.startswith("sha256:")
    assert loaded == ["length"]
    with pytest.raises(UsageError, match=r"'gone' .* cannot be loaded: ModuleNotFoundError"):
        load_function("gone", "g")
    with pytest.raises(UsageError, match=r"'builtin' .* cannot be loaded"):
        load_function("builtin", "g")
    with pytest.raises(UsageError, match=r"no 'lenght' among .* \(builtin, gone, length\)"):
        load_function("lenght", "g")
    with pytest.raises(UsageError, match="none is installed"):
        load_function("anything")
