"""`sft` and `dpo` from their settings to a committed model."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import (
    BadRow,
    ConfigError,
    EnvironmentFault,
    RefNotFound,
    StageRejected,
    UsageError,
    WrongKind,
)
from zephyrctl.events import Recorder, Table, Warning_
from zephyrctl.stages.dpo.config import DpoConfig
from zephyrctl.stages.dpo.run import run as dpo
from zephyrctl.stages.sft.config import SftConfig
from zephyrctl.stages.sft.run import run as sft

FAST: dict[str, Any] = {"lr": 1e-3, "batch_size": 8, "max_length": 96, "dtype": "fp32"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "artifacts")


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": f"{n} it is"},
            ]
        }
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"say {n}", "chosen": f"{n} it is", "rejected": f"not {n}"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def metrics(artifact: Any) -> list[dict[str, Any]]:
    text = (artifact.path / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_sft_then_dpo_make_models_that_others_can_load(
    store: Store, tiny: Path, dialogues: Path, pairs: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first = sft(SftConfig(init=str(tiny), data=[str(dialogues)], epochs=2, **FAST), Work(store))
    assert first.ref == "sft-e2@v1"
    made = dpo(
        DpoConfig(init=str(tmp_path / "ckpt" / "sft-e2"), data=[str(pairs)], epochs=1, **FAST), Work(store)
    )
    assert made.ref == "dpo-e1@v1"
    assert made.artifact is not None
    folder = tmp_path / "ckpt" / "dpo-e1"
    AutoModelForCausalLM.from_pretrained(str(folder))
    assert AutoTokenizer.from_pretrained(str(folder)).chat_template
    manifest = made.artifact.check().manifest
    roles = {i.role: i for i in manifest.inputs}
    assert roles["init"].ref == roles["reference"].ref == "sft-e2@v1"
    assert roles["reference"].digest == first.artifact.digest  # type: ignore[union-attr]
    assert metrics(made.artifact)[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert set(manifest.headline) == {"loss", "test_loss", "test_accuracy", "test_margin"}
    assert manifest.counts["weights_changed"] > 0
    assert manifest.templates["chat_template"]
    assert {f.path for f in manifest.files} >= {"model.safetensors", "metrics.jsonl", "timing.jsonl"}
    told = [
        json.loads(line)["text"]
        for line in (made.artifact.path / "log.jsonl").read_text("utf-8").splitlines()
    ]
    assert len(told) == len(set(told)), "nothing is logged twice"
    assert str(tmp_path) not in "".join(told)


def test_a_finished_step_is_found_also_with_other_runtime_settings(
    store: Store, tiny: Path, dialogues: Path
) -> None:
    settings = SftConfig(init=str(tiny), data=[str(dialogues)], max_steps=3, **FAST)
    first = sft(settings, Work(store))
    assert first.ref == "sft-s3@v1"
    assert not first.already
    second = sft(settings.model_copy(update={"micro_batch": 2, "save_steps": 1}), Work(store))
    assert (second.ref, second.already) == ("sft-s3@v1", True)
    third = sft(settings.model_copy(update={"lr": 2e-3}), Work(store))
    assert third.ref == "sft-s3@v2"
    again = sft(settings, Work(store, again=True))
    assert again.ref == "sft-s3@v3"
    assert again.artifact.digest == first.artifact.digest  # type: ignore[union-attr]


def test_kept_epochs_are_side_versions(store: Store, tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    made = sft(
        SftConfig(init=str(tiny), data=[str(dialogues)], epochs=3, keep_epochs=True, **FAST), Work(store)
    )
    assert made.sides == {"sft-e3.epoch1": "sft-e3.epoch1@v1", "sft-e3.epoch2": "sft-e3.epoch2@v1"}
    kept = store.resolve("sft-e3.epoch2").check()
    assert kept.manifest.side
    per_epoch = len(metrics(kept)) // 2
    assert metrics(kept) == metrics(made.artifact)[: 2 * per_epoch]
    assert (tmp_path / "ckpt" / "sft-e3.epoch1" / "model.safetensors").is_file()
    assert store.newest("sft-e3") is not None


def test_a_dry_run_says_what_would_happen_and_writes_nothing(
    store: Store, tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    seen = Recorder()
    made = sft(
        SftConfig(init=str(tiny), data=[str(dialogues)], epochs=3, **FAST),
        Work(store, emit=seen, dry_run=True),
    )
    assert (made.ref, made.artifact) == (None, None)
    tables = {
        event.title: dict(row[:2] for row in event.rows) for event in seen.events if isinstance(event, Table)
    }
    assert tables["plan"]["steps"] == "15 of 8 rows, 3 epochs, 2 of warm-up"
    assert {"row lengths", "memory of each process, at its fullest", "cost"} <= tables.keys()
    assert made.plan["steps"]["steps"] == 15
    assert store.names() == []


def test_small_runs_are_warned_about_and_empty_ones_refused(
    store: Store, tiny: Path, dialogues: Path
) -> None:
    seen = Recorder()
    settings = SftConfig(
        init=str(tiny), data=[str(dialogues)], **{**FAST, "batch_size": 64, "max_steps": 2, "warmup": 0}
    )
    sft(settings, Work(store, emit=seen))
    warnings = [e.text for e in seen.events if isinstance(e, Warning_)]
    assert any("fewer than a batch of 64" in text for text in warnings)
    assert any("only 2 optimiser steps" in text for text in warnings)
    with pytest.raises(UsageError, match="train nothing"):
        sft(settings.model_copy(update={"max_steps": 1, "warmup": 0.1}), Work(store))
    with pytest.raises(StageRejected, match="35 of 35 training rows"):
        sft(settings.model_copy(update={"max_length": 8}), Work(store))


def test_a_run_that_changes_nothing_is_refused(store: Store, tiny: Path, dialogues: Path) -> None:
    settings = SftConfig(
        init=str(tiny), data=[str(dialogues)], max_steps=3, **{**FAST, "lr": 1e-30, "dtype": "bf16"}
    )
    with pytest.raises(StageRejected, match="changed no weight"):
        sft(settings, Work(store))
    assert store.names() == []


def test_what_is_missing_or_wrong_is_said(store: Store, tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model to start from"):
        sft(SftConfig(data=[str(dialogues)]), Work(store))
    with pytest.raises(UsageError) as caught:
        dpo(DpoConfig(), Work(store))
    assert "zephyrctl sft" in str(caught.value.hint)
    with pytest.raises(RefNotFound) as missing:
        dpo(DpoConfig(init=str(tiny)), Work(store))
    assert "zephyrctl binarize" in str(missing.value.hint)
    sft(SftConfig(init=str(tiny), data=[str(dialogues)], max_steps=3, **FAST), Work(store))
    with pytest.raises(UsageError) as caught:
        dpo(DpoConfig(), Work(store))
    assert "--init sft-s3@v1" in str(caught.value.hint)
    with pytest.raises(WrongKind):
        dpo(DpoConfig(init="sft-s3@v1", data=["sft-s3@v1"]), Work(store))
    with pytest.raises(UsageError, match="context of 2048"):
        sft(SftConfig(init=str(tiny), data=[str(dialogues)], max_length=4096), Work(store))


def test_a_described_7b_stops_before_training(
    store: Store, tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "seven"))
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    config |= {"vocab_size": 32000, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(EnvironmentFault, match=r"7\.2 B.*model\.safetensors.*108 GiB"):
        sft(SftConfig(init=str(folder), data=[str(dialogues)]), Work(store))
    assert store.names() == []


def test_real_pairs_train_both_stages_and_cuts_are_counted(
    store: Store, tiny: Path, parity_data: Path
) -> None:
    data = str(parity_data / "ultrafeedback" / "pairs-200.jsonl.gz")
    common = {**FAST, "max_length": 512, "max_steps": 4, "micro_batch": 4, "max_dropped": 0.5}
    first = sft(SftConfig(init=str(tiny), data=[data], **common), Work(store))
    counts = first.artifact.manifest.counts  # type: ignore[union-attr]
    test = counts["test"]
    assert counts["rows"] + counts["dropped_too_long"] + test["rows"] + test["dropped_too_long"] == 200
    assert counts["cut"] > 0
    made = dpo(DpoConfig(init="sft-s4@v1", data=[data], max_prompt_length=256, **common), Work(store))
    counts = made.artifact.manifest.counts  # type: ignore[union-attr]
    assert counts["rows"] + counts["test"]["rows"] == 200
    assert min(counts[name] for name in ("cut", "cut_prompt", "cut_chosen", "cut_rejected")) > 0
    assert counts["weights_changed"] > 0


def test_a_damaged_row_of_real_pairs_is_named(
    store: Store, tiny: Path, parity_data: Path, tmp_path: Path
) -> None:
    with gzip.open(parity_data / "ultrafeedback" / "pairs-200.jsonl.gz", "rt", encoding="utf-8") as source:
        lines = source.read().splitlines()
    lines[122] = lines[122][: len(lines[122]) // 2]
    bad = tmp_path / "damaged.jsonl"
    bad.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(BadRow, match=r"damaged\.jsonl:123"):
        dpo(DpoConfig(init=str(tiny), data=[str(bad)], **FAST), Work(store))
    skipped = DpoConfig(
        init=str(tiny),
        data=[str(bad)],
        on_bad_row="skip",
        max_steps=2,
        max_dropped=0.5,
        **{**FAST, "max_length": 256},
    )
    made = dpo(skipped, Work(store))
    rejects = made.artifact.manifest.counts["rejects"]  # type: ignore[union-attr]
    assert sum(rejects.values()) >= 1


def test_packing_is_counted_and_recorded(store: Store, tiny: Path, dialogues: Path) -> None:
    made = sft(
        SftConfig(init=str(tiny), data=[str(dialogues)], epochs=4, packing=True, **{**FAST, "batch_size": 2}),
        Work(store),
    )
    counts = made.artifact.manifest.counts  # type: ignore[union-attr]
    assert 0 < counts["packs"] < counts["rows"]
    assert counts["steps"] == 4 * -(-counts["packs"] // 2)


def test_settings_that_cannot_be() -> None:
    from zephyrctl.config import Layer, build

    with pytest.raises(ConfigError, match="beta"):
        build(DpoConfig, [Layer("--set", {"beta": 0})])
    with pytest.raises(ConfigError, match="warmup"):
        build(SftConfig, [Layer("--set", {"warmup": 1.5})])
    assert SftConfig(epochs=0.5).length_label() == "e0.5"
    assert SftConfig(epochs=3).length_label() == "e3"
    assert DpoConfig(max_steps=7).length_label() == "s7"


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import ZephyrError
from zephyrctl.events import Metric
from zephyrctl.stages.sft.config import SftConfig
from zephyrctl.stages.sft.run import run

def emit(event):
    if isinstance(event, Metric):
        print(event.step, flush=True)

config = SftConfig(
    init=sys.argv[2],
    data=[sys.argv[3]],
    epochs=3,
    lr=1e-3,
    batch_size=4,
    max_length=96,
    dtype="fp32",
    save_steps=2,
)
try:
    print(run(config, Work(Store.open(Path(sys.argv[1])), emit=emit)).ref)
except ZephyrError as error:
    print(type(error).__name__)
    sys.exit(error.exit_code)
"""


def start(root: Path, tiny: Path, dialogues: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(root), str(tiny), str(dialogues)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def finish(root: Path, tiny: Path, dialogues: Path) -> tuple[int, Any]:
    """The first step that the run reported, and the artifact it made."""
    run = start(root, tiny, dialogues)
    out, _ = run.communicate(timeout=300)
    assert run.returncode == 0
    assert out.splitlines()[-1] == "sft-e3@v1"
    return int(out.splitlines()[0]), Store.open(root).resolve("sft-e3@v1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: Path, dialogues: Path) -> Any:
    begun_at, artifact = finish(tmp_path_factory.mktemp("whole") / "artifacts", tiny, dialogues)
    assert begun_at == 1
    return artifact


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGKILL, -9),
    ],
)
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    number: signal.Signals, code: int, tiny: Path, dialogues: Path, tmp_path: Path, undisturbed: Any
) -> None:
    root = tmp_path / "artifacts"
    cut = start(root, tiny, dialogues)
    assert cut.stdout is not None
    for line in cut.stdout:
        if line.strip() == "7":
            os.kill(cut.pid, number)
            break
    cut.communicate(timeout=300)
    assert cut.returncode == code
    assert not list(root.glob("sft-*"))
    resumed_at, artifact = finish(root, tiny, dialogues)
    assert resumed_at >= 7
    assert artifact.digest == undisturbed.digest
    assert not list((root / ".work").glob("*/scratch"))
