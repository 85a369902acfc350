"""The command line as scripts meet it: what is on stdout, which exit code, what the message says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zephyrctl import __version__

if TYPE_CHECKING:
    from conftest import Shell

SMALL = ("gen-sft", "--teacher", "sandbox", "--rows", "12")


def test_version_and_no_arguments(shell: Shell) -> None:
    assert shell("--version").out == f"{__version__}\n"
    assert "Usage: " in shell().out + shell().err


def test_stdout_is_the_ref_alone(shell: Shell) -> None:
    first = shell(*SMALL)
    assert (first.code, first.out) == (0, "sft-data@v1\n")
    again = shell(*SMALL)
    assert (again.code, again.out) == (0, "sft-data@v1\n")
    prefs = shell("gen-prefs", "--teacher", "sandbox", "--rows", "8")
    assert prefs.out == "feedback@v1\n"
    assert shell("binarize").out == "prefs@v1\n"


def test_shared_options_before_and_after_the_verb(shell: Shell, tmp_path: Path) -> None:
    assert shell("--store", "a", *SMALL).out == "sft-data@v1\n"
    assert (tmp_path / "a" / "sft-data" / "v1" / "manifest.json").is_file()
    assert shell(*SMALL, "--store", "a").out == "sft-data@v1\n"
    before = shell("--json", "--quiet", "--store", "a", *SMALL)
    after = shell(*SMALL, "--json", "--quiet", "--store", "a")
    assert before == after
    assert json.loads(after.out)["ref"] == "sft-data@v1"
    assert after.err == ""
    assert shell("--store", "a", "artifacts", "ls").out == shell("artifacts", "ls", "--store", "a").out


def test_the_store_is_named_by_flag_environment_or_project_file(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zephyrctl.yaml").write_text("store: project\ngen-sft:\n  rounds: 0\n")
    assert shell(*SMALL, "--quiet").out == "sft-data@v1\n"
    monkeypatch.setenv("ZEPHYRCTL_STORE", "environment")
    assert shell(*SMALL, "--quiet").code == 0
    assert shell(*SMALL, "--quiet", "--store", "flag").code == 0
    for name in ("project", "environment", "flag"):
        manifest = json.loads((tmp_path / name / "sft-data" / "v1" / "manifest.json").read_text())
        assert manifest["edition"] == "sandbox + rows"
        assert manifest["config"]["rounds"] == 1


def test_json_document_on_success_and_on_failure(shell: Shell) -> None:
    done = shell(*SMALL, "--json")
    body = json.loads(done.out)
    assert body["kind"] == "sft"
    assert body["already"] is False
    assert body["content_digest"].startswith("sha256:")
    assert json.loads(shell(*SMALL, "--json").out)["already"] is True
    failed = shell("binarize", "--feedback", "none", "--json")
    assert failed.code == 4
    assert json.loads(failed.out)["error"]["code"] == 4


def test_dry_run_makes_nothing(shell: Shell, tmp_path: Path) -> None:
    done = shell(*SMALL, "--dry-run")
    assert (done.code, done.out) == (0, "")
    assert done.err
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("gen-prefs", "--teacher", "gpt-4"), 6, "OPENAI_API_KEY"),
        (
            ("gen-prefs", "--teacher", "gpt-4", "--prompts", "missing.jsonl", "--set", "nonsense=1"),
            6,
            "OPENAI_API_KEY",
        ),
        (("gen-prefs", "--teacher", "sandbox", "--pool", "claude-opus-4-1"), 6, "ANTHROPIC_API_KEY"),
        (("gen-sft",), 2, "--teacher"),
        (("gen-sft", "--teacher", "mymodel"), 2, "openai:mymodel"),
        (("gen-sft", "--teacher", "sandbox", "--rows", "none"), 2, "--rows"),
        (("gen-sft", "--teacher", "sandbox", "--set", "temprature=1"), 2, "temperature"),
        (("gen-sft", "--teacher", "sandbox", "--edition", "sandbx"), 2, "sandbox"),
        (("gen-sft", "--teacher", "sandbox", "--config", "none.yaml"), 4, "none.yaml"),
        (("gen-sft", "--teacher", "sandbox", "--prompts", "none.jsonl"), 4, "none.jsonl"),
        (("binarize",), 4, "gen-prefs"),
        (("dpo",), 2, "--init"),
        (("dpo", "--init", "sandbox"), 4, "binarize"),
        (("sft", "--init", "ckpt/none", "--data", "x"), 4, "ckpt/none"),
        (("eval", "--model", "ckpt/none"), 4, "ckpt/none"),
        (("artifacts", "show", "none"), 4, "none"),
        (("artifacts", "show", "NAME!"), 2, "NAME!"),
        (("fly",), 2, "fly"),
        (("binarize", "--ties", "perhaps"), 2, "ties"),
        (("binarize", "--score", "beauty"), 2, "aspect:NAME"),
    ],
)
def test_refusals(shell: Shell, args: tuple[str, ...], code: int, words: str) -> None:
    done = shell(*args)
    assert done.code == code, done.err
    assert words in done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert "what to do:" in done.err


def test_wrong_kind_names_the_stage_that_makes_the_right_one(shell: Shell) -> None:
    shell("gen-sft", "--teacher", "sandbox", "--rows", "8")
    shell("gen-prefs", "--teacher", "sandbox", "--rows", "4")
    done = shell("dpo", "--init", "sandbox", "--data", "feedback")
    assert done.code == 2
    assert "zephyrctl binarize --feedback feedback@v1" in done.err
    done = shell("sft", "--init", "sandbox", "--data", "feedback")
    assert done.code == 2
    assert "feedback@v1" in done.err


def test_a_bad_row_is_named_by_file_and_line(shell: Shell, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(5)]
    lines = [json.dumps(r) for r in rows]
    lines[3] = lines[3][:-4]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    done = shell("dpo", "--init", "sandbox", "--data", "pairs.jsonl")
    assert done.code == 5
    assert "pairs.jsonl:4" in done.err


def test_a_missing_extra_names_the_pip_line(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "p", "response": "r"}) + "\n")
    for name in [m for m in sys.modules if m.split(".")[0] in ("torch", "trl", "transformers")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("torch", "transformers", "trl"):
        monkeypatch.setitem(sys.modules, name, None)
    done = shell("sft", "--init", "sandbox", "--data", "d.jsonl", "--max-steps", "1")
    assert done.code == 3
    assert "pip install 'zephyrctl[train]'" in done.err


def test_debug_shows_the_traceback(shell: Shell) -> None:
    assert "Traceback" in shell("artifacts", "show", "none", "--debug").err
    assert "Traceback" in shell("--debug", "artifacts", "show", "none").err


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    line = f"{sys.executable} -m zephyrctl --help | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "zephyrctl", "gen-sft", "--teacher", "sandbox", "--rows", "1500"]
    worker = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    ledger = tmp_path / "artifacts" / "ledger.sqlite"
    for _ in range(600):
        if ledger.exists() or worker.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(worker.pid, number)
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == code, err
    assert out == ""
    assert "run the same command again" in err
    assert not (tmp_path / "artifacts" / "sft-data").exists()
