"""Two commands with one store train as two machines do: one model, which both name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine_shop import Shop
from zephyrctl.training.supervise import free_port

SETTINGS = {
    "lr": 1e-3, "batch_size": 8, "max_length": 96, "dtype": "fp32", "max_steps": 4, "engine": "ddp",
    "num_processes": 2, "num_machines": 2,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.xdist_group("engines")
def test_two_machines_make_one_model_and_both_name_it(shop: Shop) -> None:
    def machine(rank: int, *more: str) -> subprocess.Popen[str]:
        chosen = SETTINGS | {"machine_rank": rank, "rendezvous": f"127.0.0.1:{port}"}
        options = [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]
        return subprocess.Popen(
            [
                Path(sys.executable).with_name("zephyrctl"), "sft", "--init", "sandbox", "--data", shop.dialogues,
                "--store", shop.root / "artifacts", *options, *more,
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    port = free_port()
    runs = [machine(rank) for rank in (1, 0)]
    told = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert [out for out, _ in told] == ["sft-s4@v1\n"] * 2
    assert not any("is there already" in err for _, err in told)
    made = shop.store.resolve("sft-s4@v1").check()
    engine = (made.manifest.model_extra or {})["engine"]
    assert (engine["name"], engine["processes"]) == ("ddp", 2)
    rows = [
        json.loads(line) for line in (made.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    port = free_port()
    runs = [machine(rank, "--again") for rank in (1, 0)]
    assert [run.communicate(timeout=300)[0] for run in runs] == ["sft-s4@v2\n"] * 2
