"""What processes tell one another: alone without a word, together over a process group."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zephyrctl.training.crew import Crew

# torch is imported once, and the processes are forked from there
TOGETHER = """
import json, os, sys
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from zephyrctl.training.crew import Crew

out, world = Path(sys.argv[1]), 3
torch.set_num_threads(1)
children = []
for rank in range(world):
    child = os.fork()
    if not child:
        break
    children.append(child)
else:
    sys.exit(sum(os.waitpid(child, 0)[1] for child in children) != 0)
dist.init_process_group("gloo", init_method=f"file://{out / 'meet'}", rank=rank, world_size=world,
                        timeout=timedelta(seconds=60))
crew = Crew(rank, world)
if crew.leads:
    (out / "written").write_text("by the leader")
crew.wait()
found = {
    "seen": (out / "written").is_file(), "leads": crew.leads, "most": crew.most(15 if rank == 2 else 0),
    "total": crew.total([rank + 1.0, 0.1, 1e-17]), "told": crew.told("checkpoint-4" if crew.leads else ""),
}
(out / f"{rank}.json").write_text(json.dumps(found))
dist.destroy_process_group()
"""


def test_alone_every_word_is_one_s_own() -> None:
    crew = Crew()
    assert crew.leads
    crew.wait()
    assert crew.most(7) == 7
    assert crew.total([1.5, 2]) == [1.5, 2.0]
    assert crew.told("a word") == "a word"


def test_only_the_first_leads() -> None:
    assert [Crew(rank, 3).leads for rank in range(3)] == [True, False, False]


def test_three_processes_hear_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(3)]
    assert [one.pop("leads") for one in found] == [True, False, False]
    assert found[0] == found[1] == found[2]
    assert found[0]["seen"]
    assert found[0]["most"] == 15
    assert found[0]["told"] == "checkpoint-4"
    # float32 would have rounded the tenths
    assert found[0]["total"] == [6.0, pytest.approx(0.3, abs=1e-15), pytest.approx(3e-17)]
