"""Damage of every kind: always exit code 5, before a row is used."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from zephyrctl.artifacts.adopt import open_source
from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import Step, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.cli.app import run as run_cli
from zephyrctl.config import StageConfig
from zephyrctl.errors import IntegrityError
from zephyrctl.records import Message, PromptRow, prompt_id


class BitsConfig(StageConfig):
    """A stage that exists for these tests."""

    stage = "bits"


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A version of kind prompts with two splits and a reject."""
    store = Store.open(tmp_path / "artifacts")
    step = Step(Work(store), BitsConfig(), name="prompts", kind="prompts", inputs=[], world="real")
    with step.open() as staging:
        for n in range(24):
            asked = [Message(role="user", content=f"question {n} " + "x" * n)]
            row = PromptRow(prompt_id=prompt_id(asked)[:8], prompt=asked)
            staging.write_rows("test" if n == 0 else "train", [row])
        staging.write_rejects([{"where": "x:1", "reason": "tie", "detail": "", "row": {}}])
        made = staging.commit()
    for path in made.path.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    return made


def test_every_flipped_bit_of_a_small_shard_is_caught(artifact: Artifact) -> None:
    path = artifact.path / "data" / "test-00000-of-00001.parquet"
    raw = path.read_bytes()
    assert len(raw) <= 2048
    missed = []
    with path.open("r+b") as file:
        for bit in range(len(raw) * 8):
            place, mask = bit // 8, 1 << bit % 8
            os.pwrite(file.fileno(), bytes([raw[place] ^ mask]), place)
            try:
                artifact.check()
                missed.append(bit)
            except IntegrityError as error:
                if path.name not in error.message:
                    missed.append(bit)
            os.pwrite(file.fileno(), raw[place : place + 1], place)
    assert missed == []
    artifact.check()


def damages(artifact: Artifact, count: int) -> list[tuple[Path, bytes]]:
    """Files of a version with one bit flipped, or cut short; half of each, places drawn with a fixed seed."""
    draw = random.Random(20231016)
    files = [*sorted(artifact.path.rglob("*.parquet")), artifact.path / "manifest.json"]
    found = []
    for number in range(count):
        path = draw.choice(files)
        raw = bytearray(path.read_bytes())
        if number % 2:
            raw = raw[: draw.choice([0, 1, len(raw) // 2, len(raw) - 1, draw.randrange(len(raw))])]
        else:
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        found.append((path, bytes(raw)))
    return found


def test_two_hundred_damages_give_exit_code_5_before_a_row_is_printed(
    artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    root = artifact.path.parent.parent
    command = ["artifacts", "--store", str(root), "cat", "prompts"]
    assert run_cli(command) == 0
    assert len(capsys.readouterr().out.splitlines()) == 24
    store = Store.open(root)
    for path, damaged in damages(artifact, 200):
        raw = path.read_bytes()
        path.write_bytes(damaged)
        rejects = ["--rejects"] if len(damaged) % 2 else []
        assert run_cli([*command, *rejects]) == 5
        out, err = capsys.readouterr()
        assert out == ""
        assert path.name in err
        with pytest.raises(IntegrityError):
            open_source(store, "prompts", "prompts").rows().__next__()
        path.write_bytes(raw)
    assert run_cli(["artifacts", "--store", str(root), "verify"]) == 0


def test_damage_through_the_real_command_line(artifact: Artifact) -> None:
    root = artifact.path.parent.parent
    for path, damaged in damages(artifact, 4):
        raw = path.read_bytes()
        path.write_bytes(damaged)
        for verb in (["cat", "prompts"], ["verify"]):
            command = [sys.executable, "-m", "zephyrctl", "--store", str(root), "artifacts", *verb]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            assert done.returncode == 5
            assert path.name in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
            if verb[0] == "cat":
                assert done.stdout == ""
        path.write_bytes(raw)
