"""The demo killed in the middle goes on where it was; once done, it is found done without loading torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
from zephyrctl.events import Note
from zephyrctl.recipes import demo

demo.FAST = {
    "gen-sft": {"rows": 24},
    "sft": {"max_steps": 2},
    "gen-prefs": {"rows": 24},
    "dpo": {"max_steps": 2},
    "eval": {"rows": 6, "max_tokens": 16},
}

def emit(event):
    if isinstance(event, Note):
        print(event.text, flush=True)

result = demo.run_demo(Path(sys.argv[1]) / "artifacts", fast=True, emit=emit)
print(json.dumps({"refs": result.refs, "fresh": result.fresh, "torch": "torch" in sys.modules}))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(folder: Path) -> dict[str, object]:
    process = start(folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return dict(json.loads(out.splitlines()[-1]))


@pytest.mark.xdist_group("training")
def test_a_killed_demo_goes_on_and_a_finished_one_is_found_done(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("5/12 dpo"):
            break
    process.kill()
    process.communicate(timeout=60)

    resumed = finish(tmp_path)
    assert resumed["fresh"] == 8, "the data and dSFT-1 were there"
    refs = resumed["refs"]
    assert isinstance(refs, dict)
    assert set(refs) >= {"dsft-1", "dsft-2", "ddpo-only", "ddpo-dsft", "eval-base", "eval-ddpo-dsft"}
    assert all(str(ref).endswith("@v1") for ref in refs.values()), "nothing was made twice"

    done = finish(tmp_path)
    assert (done["fresh"], done["refs"]) == (0, refs)
    assert done["torch"] is False
