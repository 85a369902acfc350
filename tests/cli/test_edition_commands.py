"""`edition ls`, `edition show`, `edition diff`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.store import Store
from zephyrctl.chat.render import render_text
from zephyrctl.cli.edition import token_decisions
from zephyrctl.cli.settled import choose_for, start_of
from zephyrctl.editions.choose import Choice, Start
from zephyrctl.editions.load import load, names
from zephyrctl.errors import EnvironmentFault, TryAgain
from zephyrctl.records import Message

Shell = Callable[..., Any]


def test_the_choice_for_a_model_on_this_machine(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from zephyrctl.training import hardware

    store = Store.open(tmp_path / "store")
    gpus = tuple(hardware.Gpu("a GPU", memory) for memory in (24 << 30, 20 << 30))
    monkeypatch.setattr(hardware, "this_machine", lambda: hardware.Hardware(gpus=gpus))
    assert choose_for("sft", start_of(None, store)).edition == "zephyr-7b/paper"
    assert choose_for("sft", start_of("sandbox", store)).edition == "sandbox"
    assert choose_for("dpo", start_of(str(tiny), store)).edition == "small"
    large = tmp_path / "large"
    large.mkdir()
    body = json.loads((tiny / "config.json").read_text())
    body |= {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    (large / "config.json").write_text(json.dumps(body | {"num_key_value_heads": 8, "head_dim": 128}))
    start = start_of(str(large), store, planned=True)
    assert choose_for("sft", start) == Choice(
        "one-gpu",
        "training the whole model needs about 130 GiB for 7.0 B parameters, 2 GPUs have 20 GiB each",
    )
    assert choose_for("sft", start, machines=8).edition == "zephyr-7b/paper"
    assert choose_for("sft", start, hardware="16xA100-80GB").edition == "zephyr-7b/paper"
    with pytest.raises(EnvironmentFault):
        start_of(str(large), store)


def test_the_choice_for_a_model_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    assert start_of("Qwen/Qwen3-0.6B-Base", store).parameters == pytest.approx(0.6e9, rel=0.01)
    asked: list[str] = []

    def config_only(name: str, wanted: list[str]) -> Path:
        asked.append(f"{name} {wanted}")
        raise TryAgain("the Hub cannot be reached")

    monkeypatch.setattr("zephyrctl.training.locate._from_hub", config_only)
    assert start_of("org/never-seen", store) == Start()
    assert asked == ["org/never-seen ['config.json']"]


def test_a_folder_without_weights_will_do_to_plan(tiny: Path, shell: Shell) -> None:
    import numpy

    numpy.save("lengths.npy", numpy.arange(20, 60))
    Path("shape").mkdir()
    Path("shape/config.json").write_bytes((tiny / "config.json").read_bytes())
    words = ("sft", "--init", "./shape", "--lengths", "lengths.npy", "--max-length", "64", "--dry-run")
    done = shell(*words)
    assert done.code == 0, done.err
    assert "edition 'small'" in done.err
    assert shell(*[word for word in words if word not in ("--lengths", "lengths.npy")]).code == 3


@pytest.mark.parametrize("place", ["project", "config", "set"])
def test_the_model_counts_wherever_it_is_named(place: str, shell: Shell) -> None:
    words = {"config": ["--config", "run.yaml"], "set": ["--set", "init=sandbox"]}.get(place, [])
    file = {"project": "zephyrctl.yaml", "config": "run.yaml"}.get(place, "unread.yaml")
    Path(file).write_text("sft:\n  init: sandbox\n")
    done = shell("config", "show", "sft", *words)
    assert done.code == 0, done.err
    assert done.out.startswith("sft with sandbox\n")
    assert "because the model is the sandbox's" in done.err


def test_ls_names_every_edition(shell: Shell) -> None:
    done = shell("edition", "ls")
    assert done.code == 0
    for name in names():
        assert f"{name} " in done.out
    listed = json.loads(shell("edition", "ls", "--json").out)["editions"]
    assert [one["name"] for one in listed] == names()
    assert {"sft", "dpo"} <= set(next(one["stages"] for one in listed if one["name"] == "small"))


def test_what_sft_was_told_of_the_first_token_holds_for_what_follows(tiny: Path, tmp_path: Path) -> None:
    token_decisions(load("one-gpu"), "sft").tokenizer(tiny).save_pretrained(tmp_path)
    for stage in ("sft", "dpo"):
        later = token_decisions(load("small"), stage).tokenizer(tmp_path)
        assert render_text(later, [Message(role="user", content="q")]).startswith("<s><|user|>")
    stripped = token_decisions(load("zephyr-7b/handbook-0.2"), "dpo").tokenizer(tmp_path)
    assert render_text(stripped, [Message(role="user", content="q")]).startswith("<|system|>")


def test_show_has_the_source_and_every_setting(shell: Shell) -> None:
    done = shell("edition", "show", "zephyr-7b/handbook-0.2")
    assert "v0.2.0" in done.out
    assert "What is not repeated" in " ".join(done.out.split())
    assert any(line.split() == ["optimizer", "rmsprop"] for line in done.out.splitlines())
    document = json.loads(shell("edition", "show", "zephyr-7b/handbook-0.2", "--json").out)
    assert document["sft"]["packing"] == "wrapped"


@pytest.mark.parametrize("words", [("show", "zephyr-7b/papr"), ("diff", "small", "zephyr-7b/papr")])
def test_an_unknown_name_is_guessed(words: tuple[str, ...], shell: Shell) -> None:
    done = shell("edition", *words)
    assert done.code == 2
    assert "did you mean 'zephyr-7b/paper'?" in done.err


def test_diff_shows_settings_and_first_differing_tokens(shell: Shell) -> None:
    done = shell("edition", "diff", "zephyr-7b/paper", "zephyr-7b/handbook-0.3")
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert ["dpo", "beta", "0.1", "0.01"] in lines
    assert ["sft", "packing", "best-fit", "wrapped"] in lines
    assert "the tokenizer is the sandbox's" in done.err
    document = json.loads(shell("edition", "diff", "zephyr-7b/paper", "zephyr-7b/handbook-0.3", "--json").out)
    [row] = [r for r in document["tokens"] if (r["row"], r["side"]) == ("one turn", "chosen")]
    opening, closing = row["spots"]
    assert opening["loss_only"]
    assert opening["before"].endswith("</s>\n")
    assert opening["second"]["tokens"][0] == {**opening["first"]["tokens"][0], "loss": True}
    assert [token["text"] for token in closing["second"]["tokens"]] == ["\n", "</s>"]
    assert closing["first"] == {"count": 0, "tokens": []}
    assert row["second"]["with_loss"] == row["first"]["with_loss"] + 4


def test_diff_of_an_edition_with_itself(shell: Shell) -> None:
    done = shell("edition", "diff", "small", "small")
    assert done.out.startswith("the same settings")
    assert " same " in done.out
    document = json.loads(shell("edition", "diff", "small", "small", "--json").out)
    assert document["settings"] == []
    assert [row["spots"] for row in document["tokens"]] == [[] for _ in document["tokens"]]


def test_diff_leaves_out_stages_that_are_not_settled(shell: Shell) -> None:
    done = shell("edition", "diff", "zephyr-h4", "zephyr-7b/handbook-0.2")
    assert done.code == 0
    assert "no tokens of sft: zephyr-h4 does not settle it" in done.err
    assert "no rows whose tokens could be compared" in done.out


def test_diff_on_rows_and_a_tokenizer_of_ones_own(shell: Shell, tiny: Path) -> None:
    talk = [{"role": "user", "content": "the sun"}, {"role": "assistant", "content": "a star"}]
    Path("talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for _ in range(7)))
    words = (
        "edition",
        "diff",
        "small",
        "one-gpu",
        "--data",
        "talks.jsonl",
        "--tokenizer",
        str(tiny),
        "--rows",
        "2",
    )
    document = json.loads(shell(*words, "--json").out)
    assert [row["row"] for row in document["tokens"]] == ["row 1", "row 2"]
    assert document["tokens"][0]["spots"][0]["second"]["tokens"] == [{"id": 0, "text": "<s>", "loss": False}]
    assert not Path("artifacts").exists()
    pair = {"prompt": "the sun", "chosen": "a star", "rejected": "a tree"}
    Path("pairs.jsonl").write_text(json.dumps(pair) + "\n")
    document = json.loads(shell("edition", "diff", "small", "one-gpu", "--data", "pairs.jsonl", "--json").out)
    # the chosen side of a pair can be read as a dialogue too
    assert [(row["stage"], row["side"]) for row in document["tokens"]] == [
        ("sft", None),
        ("dpo", "chosen"),
        ("dpo", "rejected"),
    ]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--data", "missing.jsonl"), 4),
        (("--data", "neither.jsonl"), 5),
        (("--tokenizer", "nowhere"), 4),
        (("--rows", "0"), 2),
    ],
)
def test_diff_refuses_what_it_cannot_read(words: tuple[str, ...], code: int, shell: Shell) -> None:
    Path("neither.jsonl").write_text('{"colour": "blue"}\n')
    done = shell("edition", "diff", "small", "one-gpu", *words)
    assert done.code == code, done.err
    assert done.out == ""
