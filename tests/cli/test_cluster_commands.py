"""`fetch` and `launch slurm` as commands: what they print, write and refuse."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from zephyrctl.artifacts import bundle
from zephyrctl.artifacts.bundle import BundleFile, Thing
from zephyrctl.artifacts.bundle_fetch import Wanted
from zephyrctl.cli import fetch, launch
from zephyrctl.errors import IntegrityError, RefNotFound, UsageError
from zephyrctl.events import Recorder, Table

SHA = "a" * 40
BODIES = {"config.json": b"{}", "model.safetensors": b"weights", "rows.jsonl": b"{}\n", "make.py": b"code"}


class FakeHub:
    def listing(self, wanted: Wanted, revision: str | None) -> tuple[str, list[BundleFile]]:
        return SHA, [BundleFile(n, len(b), hashlib.sha256(b).hexdigest()) for n, b in BODIES.items()]

    def download(self, thing: Thing, names: Sequence[str], folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes(BODIES[name])


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> typer.Typer:
    """The two commands, with a Hub in memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zephyrctl.artifacts.bundle_hub.HuggingFaceHub", FakeHub)
    for name in (bundle.VARIABLE, "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "")
    one = typer.Typer()
    one.command("fetch")(fetch.fetch_cli)
    one.add_typer(launch.app, name="launch")
    return one


def call(app: typer.Typer, *args: str) -> str:
    """What the command prints; its error is raised."""
    done = CliRunner().invoke(app, list(args))
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_fetch_fills_and_check_looks_at_every_file(app: typer.Typer) -> None:
    out = call(app, "fetch", "--for", "org/base", "--for", "hf://org/rows", "--to", "b", "--json")
    document = json.loads(out)
    assert [(f["kind"], f["path"], f["state"]) for f in document["files"]] == [
        ("model", "config.json", "found"),
        ("model", "model.safetensors", "found"),
        ("data", "config.json", "found"),
        ("data", "rows.jsonl", "found"),
    ]
    assert {f["commit"] for f in document["files"]} == {SHA}
    assert call(app, "fetch", "--check", "b") == "b\n"
    Path("b/models/org/base/model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(IntegrityError, match="damaged"):
        call(app, "fetch", "--check", "b")


def test_a_dry_run_lists_and_fetches_nothing(app: typer.Typer) -> None:
    document = json.loads(call(app, "fetch", "--for", "org/base", "--to", "b", "--dry-run", "--json"))
    assert [(f["path"], f["size"], f["state"]) for f in document["files"]] == [
        ("config.json", 2, "missing"),
        ("model.safetensors", 7, "missing"),
    ]
    assert not Path("b").exists()


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--to", "b"),
        ("--for", "org/base"),
        ("--check", "b", "--for", "org/base"),
        ("--for", "gpt-6.1-sol", "--to", "b"),
        ("--for", "./folder", "--to", "b"),
        ("--for", "nothing-known", "--to", "b"),
        ("--for", "sandbox", "--to", "b"),
    ],
)
def test_fetch_refuses_what_it_cannot_fetch(app: typer.Typer, args: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        call(app, "fetch", *args)
    assert not Path("b").exists()


def test_an_edition_needs_its_model_and_a_suite_its_data() -> None:
    assert [(w.kind, w.repo) for w in fetch.needed("zephyr-7b/paper")] == [
        ("model", "mistralai/Mistral-7B-v0.1")
    ]
    assert {w.kind for w in fetch.needed("openllm")} == {"suite"}
    assert [(w.repo, w.revision) for w in fetch.needed("hf:org/base@v2")] == [("org/base", "v2")]
    assert [(w.kind, w.repo, w.revision) for w in fetch.needed("hf://org/rows@v1/part")] == [
        ("data", "org/rows", "v1")
    ]


def test_offline_looks_up_what_is_named_and_shows_it(app: typer.Typer, tmp_path: Path) -> None:
    call(app, "fetch", "--for", "org/base", "--for", "hf://org/rows", "--to", "b")
    told = Recorder()
    fetch.open_offline(Path("b"), ["org/base", "./folder", None], ["hf://org/rows=0.5", "sft-data"], told)
    (table,) = [event for event in told.events if isinstance(event, Table)]
    assert [(row[1], row[4]) for row in table.rows] == [
        ("org/base/config.json", "found"),
        ("org/base/model.safetensors", "found"),
        ("org/rows/config.json", "found"),
        ("org/rows/rows.jsonl", "found"),
    ]
    assert bundle.offline_dir() == tmp_path / "b"
    with pytest.raises(RefNotFound, match="org/other"):
        fetch.open_offline(Path("b"), ["org/other"], [], told)
    Path("b/data/org/rows/rows.jsonl").unlink()
    with pytest.raises(IntegrityError, match=r"rows.jsonl of org/rows is missing"):
        fetch.open_offline(Path("b"), [], ["hf://org/rows"], told)
    assert [event for event in told.events if isinstance(event, Table)][-1].rows[-1][4] == "missing"


TRAINING = ("--", "sft", "--init", "./base", "--num-machines", "2")


def test_launch_prints_the_script_or_writes_it(app: typer.Typer) -> None:
    options = ("launch", "slurm", "--gpus", "8", "--time", "4:00:00", "--sbatch", "partition=gpu")
    script = call(app, *options, *TRAINING)
    assert script.startswith("#!/bin/bash\n")
    assert "#SBATCH --nodes=2\n" in script
    assert "    --init ./base\n" in script
    assert call(app, *options, "-o", "job.sbatch", *TRAINING) == "job.sbatch\n"
    assert Path("job.sbatch").read_text(encoding="utf-8") == script
    with pytest.raises(UsageError, match="there already"):
        call(app, *options, "-o", "job.sbatch", *TRAINING)
    with pytest.raises(UsageError, match="no folder nowhere"):
        call(app, *options, "-o", "nowhere/job.sbatch", *TRAINING)
    document: dict[str, Any] = json.loads(call(app, *options, "--json", *TRAINING))
    assert document == {"script": script, "machines": 2}


def test_launch_takes_the_store_along(app: typer.Typer) -> None:
    assert "    --store /data/store\n" in call(app, "launch", "slurm", "--store", "/data/store", *TRAINING)
    own = call(app, "launch", "slurm", "--store", "/data/store", *TRAINING, "--store", "/other")
    assert "    --store /other\n" in own
    assert "/data/store" not in own


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--num-proceses", "8"), "--num-proceses"),
        (("--epochs", "many"), "--epochs"),
        (("--beta", "0.1"), "--beta"),  # an option of dpo
        (("--dry-run",), "nothing is trained"),
        (("--preview=3",), "nothing is trained"),
    ],
)
def test_launch_reads_the_trainings_options(app: typer.Typer, words: tuple[str, ...], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        call(app, "launch", "slurm", *TRAINING, *words)
    script = call(app, "launch", "slurm", "--", "dpo", "--init", "x@v1", "--beta", "0.1", "--set", "seed=1")
    assert "    --beta 0.1\n" in script


def test_launch_says_that_cores_are_missing(app: typer.Typer) -> None:
    said = CliRunner().invoke(app, ["launch", "slurm", "--gpus", "8", *TRAINING]).stderr
    assert "--cpus is not said" in said
    assert (
        "--cpus"
        not in CliRunner().invoke(app, ["launch", "slurm", "--gpus", "8", "--cpus", "64", *TRAINING]).stderr
    )


def test_launch_refuses_other_stages(app: typer.Typer) -> None:
    with pytest.raises(UsageError, match="sft or dpo"):
        call(app, "launch", "slurm", "--", "eval", "--model", "x")
