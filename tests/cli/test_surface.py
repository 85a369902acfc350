"""The commands and flags that scripts may rely on; a change here belongs into CHANGELOG.md."""

from __future__ import annotations

from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from zephyrctl.cli.app import app

COMMON = {"--store", "--json", "--quiet", "-q", "--debug", "--no-color", "--help"}
STAGE = COMMON | {"--seed", "--out", "--edition", "--config", "--set", "--note", "--dry-run", "--again"}
TRAINING = {
    "--init", "--data", "--epochs", "--max-steps", "--lr", "--batch-size", "--max-length",
    "--keep-epochs", "--no-keep-epochs", "--chat-template", "--lora", "--max-dropped", "--engine", "--num-processes",
    "--num-machines", "--machine-rank", "--rendezvous", "--attn", "--report-to", "--verify-resume", "--preview",
    "--lengths", "--for-hardware", "--offline-dir", "--print-command",
}  # fmt: skip
WHOLE = STAGE | {"--concurrency", "--max-usd", "--yes", "-y", "--price", "--mode"}
ASKING = WHOLE | {"--pilot", "--shard", "--accept-partial"}
FLAGS: dict[str, set[str]] = {
    "demo": COMMON | {"--seeds", "--fast", "--dir"},
    "gen-sft": ASKING
    | {
        "--teacher",
        "--prompts",
        "--seeds",
        "--rows",
        "--rounds",
        "--method",
        "--topics",
        "--filter",
        "--tokenizer",
    },
    "sft": STAGE | TRAINING,
    "gen-prefs": ASKING
    | {"--teacher", "--pool", "--prompts", "--rows", "--n", "--members", "--principles", "--completions"}
    | {"--judge-mode", "--scorer", "--second-judge", "--when", "--filter", "--tokenizer"},
    "binarize": STAGE | {"--feedback", "--score", "--rejected", "--ties", "--drop"},
    "dpo": STAGE | TRAINING | {"--beta", "--loss", "--verify-ref"},
    "eval": WHOLE | {"--model", "--judge", "--rows"},
    "import": COMMON
    | {"--as", "--out", "--note", "--on-bad-row", "--filter", "--tokenizer", "--suites", "--contaminated"}
    | {"--test-fraction"},
    "why": COMMON,
    "view": COMMON | {"--rows", "--split", "--out"},
    "artifacts diff": COMMON,
    "artifacts gc": COMMON | {"--days", "--unused", "--yes", "-y"},
    "artifacts ls": COMMON | {"--kind", "--all"},
    "artifacts show": COMMON,
    "artifacts lineage": COMMON,
    "artifacts verify": COMMON,
    "artifacts cat": COMMON | {"--split", "--rows", "--rejects"},
    "artifacts merge": COMMON | {"--again", "--note", "--out"},
    "ledger cost": COMMON | {"--by", "--ref", "--run"},
    "ledger show": COMMON | {"--model", "--outcome", "--state", "--ref", "--run", "--rows", "-n"},
    "ledger export": COMMON | {"--out", "-o", "--ref", "--run"},
    "ledger import": COMMON,
    "ledger merge": COMMON,
    "ledger verify": COMMON,
    "ledger batch ls": COMMON | {"--all"},
    "ledger batch export": COMMON | {"--out", "-o", "--origin", "--model", "--run"},
    "ledger batch import": COMMON | {"--price"},
    "artifacts tag": COMMON | {"--delete"},
    "artifacts rm": COMMON | {"--yes"},
    "edition ls": COMMON,
    "edition show": COMMON,
    "edition diff": COMMON | {"--data", "--tokenizer", "--rows"},
    "chat": COMMON | {"--prompt", "--rows", "--system", "--max-tokens", "--temperature", "--top-p", "--seed"},
    "doctor": COMMON | {"--need"},
    "launch slurm": COMMON
    | {
        "--gpus",
        "--cpus",
        "--time",
        "--name",
        "--save-before",
        "--sbatch",
        "--module",
        "--venv",
        "--setup",
        "--out",
        "-o",
    },
    "fetch": COMMON | {"--for", "--to", "--check", "--dry-run"},
}
FLAGS |= {
    f"config show {stage}": FLAGS[stage]
    for stage in ("gen-sft", "sft", "gen-prefs", "binarize", "dpo", "eval")
}


def _leaves(command: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    children = getattr(command, "commands", None)
    if children is None:
        return {" ".join(path): command}
    return {
        name: leaf for key, child in children.items() for name, leaf in _leaves(child, (*path, key)).items()
    }


LEAVES = _leaves(get_command(app))


def test_the_command_tree() -> None:
    assert set(LEAVES) == set(FLAGS)


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_flags_are_frozen(name: str) -> None:
    found = {
        flag for p in LEAVES[name].params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("-")
    }
    expected = FLAGS[name] - {"--help"}
    negated = {f"--no-{flag[2:]}" for flag in expected}
    assert found - negated == expected - negated


@pytest.mark.parametrize("name", ["", "artifacts", *sorted(FLAGS)])
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(app, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    for row in result.stdout.splitlines():
        assert "│" not in row


STAGE_KINDS = {
    "gen-sft": "writes kind sft", "sft": "Reads kind sft", "gen-prefs": "writes kind feedback",
    "binarize": "Reads kind feedback", "dpo": "Reads kind prefs", "eval": "writes kind eval",
}  # fmt: skip


@pytest.mark.parametrize(("name", "words"), STAGE_KINDS.items())
def test_help_says_which_kinds_are_read_and_written(name: str, words: str) -> None:
    text = " ".join(CliRunner().invoke(app, [name, "--help"]).stdout.split())
    assert words in text
