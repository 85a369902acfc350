"""A process that commits, for the tests that need real ones: `committer.py ROOT NAME FIRST COUNT [GATE]`.

Makes COUNT versions of NAME, each by a step of its own, and prints their refs. GATE is a file to wait for.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import ClassVar

from zephyrctl.artifacts.step import Step, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.config import StageConfig
from zephyrctl.records import Message, PromptRow, prompt_id


class CommitterConfig(StageConfig):
    """One step for every knob."""

    stage: ClassVar[str] = "committer"
    knob: int = 0


def main(root: str, name: str, first: str, count: str, gate: str = "") -> None:
    """Commits and prints."""
    while gate and not Path(gate).exists():
        time.sleep(0.01)
    store = Store.open(Path(root))
    for knob in range(int(first), int(first) + int(count)):
        step = Step(
            Work(store), CommitterConfig(knob=knob), name=name, kind="prompts", inputs=[], world="real"
        )
        if (done := step.done()) is not None:
            sys.stdout.write(f"{done.ref} again\n")
            continue
        with step.open() as staging:
            asked = [Message(role="user", content=f"question {knob}")]
            staging.write_rows("train", [PromptRow(prompt_id=prompt_id(asked), prompt=asked)])
            sys.stdout.write(f"{staging.commit().ref}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
