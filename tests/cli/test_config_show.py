"""`config show`: each value and where it comes from, with the options of the stage itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Shell = Callable[..., Any]


def settings(shell: Shell, *words: str) -> dict[str, Any]:
    done = shell("config", "show", *words, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_every_layer_is_named(shell: Shell) -> None:
    Path("zephyrctl.yaml").write_text("dpo:\n  weight_decay: 0.5\n  beta: 0.7\n")
    Path("run.yaml").write_text("dpo:\n  warmup: 0.3\n  beta: 0.8\n")
    words = ("--config", "run.yaml", "--set", "beta=0.9", "--lr", "1e-6", "--init", "sandbox")
    found = settings(shell, "dpo", *words)
    origins = {name: (one["value"], one["from"]) for name, one in found["settings"].items()}
    assert origins["beta"] == (0.9, "the command line")
    assert origins["lr"] == (1e-6, "the command line")
    assert origins["warmup"] == (0.3, "run.yaml")
    assert origins["batch_size"] == (16, "edition sandbox")
    assert origins["label_smoothing"] == (0.0, "default")
    assert found["edition"].startswith("sandbox + beta")
    named = settings(shell, "dpo", "--edition", "zephyr-7b/handbook-0.3")["settings"]
    assert named["beta"] == {"value": 0.01, "from": "edition zephyr-7b/handbook-0.3", "role": "identity"}
    assert named["weight_decay"]["from"] == "edition zephyr-7b/handbook-0.3"


@pytest.mark.parametrize(
    "words",
    [
        ("gen-sft", "--teacher", "sandbox"),
        ("sft", "--init", "sandbox"),
        ("gen-prefs", "--teacher", "sandbox"),
        ("binarize",),
        ("dpo", "--init", "sandbox"),
        ("eval", "--model", "sandbox"),
    ],
)
def test_each_stage_shows_and_does_nothing(words: tuple[str, ...], shell: Shell) -> None:
    found = settings(shell, *words)
    assert found["stage"] == words[0]
    assert found["settings"]["seed"]["role"] == "identity"
    assert found["settings"]["note"]["role"] == "runtime"
    assert not list(Path("artifacts").glob("*"))


def test_a_key_is_not_needed_to_look(shell: Shell) -> None:
    done = shell("config", "show", "gen-sft", "--teacher", "gpt-4")
    assert done.code == 0, done.err


def test_text_has_value_origin_and_whether_it_counts(shell: Shell) -> None:
    done = shell("config", "show", "sft", "--init", "sandbox", "--set", "save_steps=7", "--set", "lr=3e-4")
    lines = [line.split() for line in done.out.splitlines()]
    assert ["lr", "0.0003", "the", "command", "line", "yes"] in lines
    assert ["save_steps", "7", "the", "command", "line", "no"] in lines
    assert done.out.startswith("sft with sandbox + lr\n")


def test_a_zero_is_not_taken_for_nothing(shell: Shell) -> None:
    found = settings(shell, "sft", "--init", "sandbox", "--max-dropped", "0")["settings"]["max_dropped"]
    assert found == {"value": 0.0, "from": "the command line", "role": "runtime"}
    for word in ("--lr", "--epochs"):
        done = shell("config", "show", "sft", "--init", "sandbox", word, "0")
        assert done.code == 2
        assert "greater than 0" in done.err


def test_a_setting_can_be_emptied_or_left_open(shell: Shell) -> None:
    words = ("sft", "--init", "sandbox", "--edition")
    empty = settings(shell, *words, "one-gpu", "--set", "system=")
    assert empty["settings"]["system"]["value"] == ""
    assert "system" in empty["edition"]
    left_open = settings(shell, *words, "zephyr-7b/paper", "--set", "system=null")
    assert left_open["settings"]["system"] == {"value": None, "from": "the command line", "role": "identity"}
    assert "system" in left_open["edition"]


def test_a_number_is_shown_in_full(shell: Shell) -> None:
    done = shell("config", "show", "sft", "--init", "sandbox", "--set", "lr=1.23456789e-5")
    assert "1.23456789e-05" in done.out


def test_an_edition_that_is_no_name_is_refused(shell: Shell) -> None:
    Path("run.yaml").write_text("edition: [small]\n")
    done = shell("config", "show", "sft", "--config", "run.yaml")
    assert done.code == 2
    assert "must be the name of an edition" in done.err


def test_unknown_settings_are_refused_as_by_the_stage(shell: Shell) -> None:
    done = shell("config", "show", "sft", "--init", "sandbox", "--set", "epoch=2")
    assert done.code == 2
    assert "did you mean 'epochs'?" in done.err


def test_without_a_stage_places_and_limits(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("concurrency: 3\nrpm: 60\n")
    Path("zephyrctl.yaml").write_text("edition: small\nrpm: 30\nsft:\n  lr: 1.0e-3\n")
    monkeypatch.setenv("ZEPHYRCTL_CONFIG", str(own))
    monkeypatch.setenv("ZEPHYRCTL_MAX_USD", "5")
    found = settings(shell, "--store", "elsewhere")
    assert found["store"] == {"value": "elsewhere", "from": "--store"}
    assert found["edition"] == {"value": "small", "from": "zephyrctl.yaml"}
    assert found["rpm"] == {"value": 30, "from": "zephyrctl.yaml"}
    assert found["concurrency"] == {"value": 3, "from": str(own)}
    assert found["max_usd"] == {"value": 5.0, "from": "ZEPHYRCTL_MAX_USD"}
    assert found["tpm"] == {"value": None, "from": "default"}
    assert found["sft.lr"] == {"value": 1e-3, "from": "zephyrctl.yaml"}
    monkeypatch.setenv("ZEPHYRCTL_STORE", "by-environment")
    assert "by-environment" in shell("config", "show").out
