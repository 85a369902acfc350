"""The demo as a user runs it, with three training seeds: the bars that the sandbox was built for."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def _demo(folder: Path, *args: str) -> tuple[dict[str, Any], str]:
    command = [str(Path(sys.executable).with_name("zephyrctl")), "demo", "--json", *args]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


def _compared(document: dict[str, Any], one: str, other: str, measure: str) -> dict[str, Any]:
    (found,) = [
        c for c in document["comparisons"] if (c["one"], c["other"], c["measure"]) == (one, other, measure)
    ]
    return found


def test_three_training_seeds_resolve_the_two_steps_of_the_recipe(tmp_path: Path) -> None:
    document, told = _demo(tmp_path, "--seeds", "3")
    for one, other in (("dSFT-1", "base"), ("dDPO + dSFT", "dSFT-1")):
        found = _compared(document, one, other, "judged sampled")
        assert found["resolved"], found
        assert found["difference"]["low"] > 0, found
        assert found["difference"]["seeds"] == 3
    assert "measure the machinery, not language models" in told
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20, "more than 4 GiB"
    again, told = _demo(tmp_path, "--seeds", "3")
    assert again["table3"] == document["table3"]
    assert "everything was there already" in told
