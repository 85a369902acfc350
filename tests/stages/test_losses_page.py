"""The command lines of `docs/losses.md` are real: settings that exist and fit together, and TRL's lines run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from zephyrctl.config import parse_sets
from zephyrctl.losses import NAMES, make_loss
from zephyrctl.stages.dpo.config import DpoConfig

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")


def _lines(command: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith(command)]


@pytest.mark.parametrize("line", _lines("zephyrctl dpo"))
def test_the_settings_shown_make_a_loss(line: str) -> None:
    words = shlex.split(line)
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    values = parse_sets(sets)
    if "--beta" in words:
        values["beta"] = float(words[words.index("--beta") + 1])
    config = DpoConfig(**values)
    assert config.spec() != DpoConfig().spec()
    make_loss(config.spec())


def test_every_loss_is_explained_and_the_function_shown_works(tmp_path: Path) -> None:
    for name in NAMES:
        assert f"| `{name}`" in PAGE, name
    [code] = [c for c in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "def fn" in c]
    (tmp_path / "my.py").write_text(code, encoding="utf-8")
    loss = make_loss(DpoConfig(loss=[f"{tmp_path / 'my.py'}:fn"]).spec())
    assert loss.needs_reference


@pytest.mark.slow
def test_trls_kto_reads_the_pairs(tiny: Path, tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "question"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }
    rows = [json.dumps(row).replace("question", f"question {n}") for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "CUDA_VISIBLE_DEVICES": ""}
    zephyrctl = [sys.executable, "-m", "zephyrctl", "import", "pairs.jsonl", "--as", "prefs"]
    subprocess.run(zephyrctl, cwd=tmp_path, env=environment, check=True, capture_output=True)
    [line] = _lines("trl kto")
    words = shlex.split(line.replace("ckpt/sft-e1", str(tiny)))
    small = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "--report_to", "none"]
    trl = Path(sys.executable).with_name("trl")
    done = subprocess.run(
        [trl, *words[1:], *small], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "kto" / "model.safetensors").is_file()
