"""`sft` and `dpo` with adapters: what the version holds, what follows from what, what others can load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.events import Recorder
from zephyrctl.stages.dpo.config import DpoConfig
from zephyrctl.stages.dpo.run import run as dpo
from zephyrctl.stages.sft.config import SftConfig
from zephyrctl.stages.sft.run import run as sft

FAST: dict[str, Any] = {
    "lr": 1e-2, "batch_size": 8, "max_length": 96, "dtype": "fp32", "lora": True, "lora_r": 4, "lora_dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    turns = [[f"say {n}", f"{n} it is"] for n in range(40)]
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in turns
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"say {n}", "chosen": f"{n} it is", "rejected": f"not {n}"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder))


def difference(left: Any, right: Any) -> float:
    """The largest difference of two models' logits on one sequence."""
    import torch

    rows = torch.arange(4, 44)[None]
    with torch.no_grad():
        return float((left.eval()(input_ids=rows).logits - right.eval()(input_ids=rows).logits).abs().max())


def test_adapters_train_dialogues_then_pairs(
    tiny: Path, dialogues: Path, pairs: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    store = Store.open(tmp_path / "artifacts")
    first = sft(SftConfig(init=str(tiny), data=[str(dialogues)], **FAST), Work(store)).artifact
    assert first is not None
    first.check()
    listed = {entry.path for entry in first.manifest.files}
    assert {"model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= listed
    merged = loaded(first.path)
    assert difference(merged, loaded(tiny)) > 1e-3
    assert difference(PeftModel.from_pretrained(loaded(tiny), str(first.path / "adapter")), merged) < 1e-5

    heard = Recorder()
    second = dpo(DpoConfig(init=str(first.ref), data=[str(pairs)], **FAST), Work(store, heard)).artifact
    assert second is not None
    base = json.loads((second.path / "adapter" / "base.json").read_text(encoding="utf-8"))
    assert base == {"name": str(first.ref), "digest": first.digest}
    text = (second.path / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [row for line in text.splitlines() if "loss" in (row := json.loads(line))]
    # The reference is the merged model with no adapter on: the first loss is ln 2, and no other weights are read.
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert (
        difference(PeftModel.from_pretrained(merged, str(second.path / "adapter")), loaded(second.path))
        < 1e-5
    )


def test_equal_adapter_runs_give_equal_bytes(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    made = []
    for place in ("a", "b"):
        store = Store.open(tmp_path / place / "artifacts")
        made.append(sft(SftConfig(init=str(tiny), data=[str(dialogues)], **FAST), Work(store)).artifact)
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].digest == made[1].digest


@pytest.mark.slow
def test_lm_eval_reads_the_merged_model(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="needs the eval extra")
    from lm_eval.tasks import TaskManager

    store = Store.open(tmp_path / "artifacts")
    made = sft(SftConfig(init=str(tiny), data=[str(dialogues)], **FAST), Work(store)).artifact
    assert made is not None
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [{"asked": f"say {n}", "choices": [f"{n} it is", "no"], "right": 0} for n in range(6)]
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tasks / "say.yaml").write_text(
        f"""task: say
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tasks / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{asked}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: right
metric_list: [{{metric: acc}}]
""",
        encoding="utf-8",
    )
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(made.path), "dtype": "float32"},
        tasks=["say"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        batch_size=2,
    )
    assert found["n-samples"]["say"]["effective"] == 6
    assert 0.0 <= found["results"]["say"]["acc,none"] <= 1.0
