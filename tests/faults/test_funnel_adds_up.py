"""A teacher that talks garbage now and then: every count adds up; concurrency, shards and kills change no byte.

The teacher answers over loopback as the sandbox does, but 3 % of its replies, drawn by the hash of the request, are
unreadable, empty, cut off, refused or hostile.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fault_job import KEY
from zephyrctl.sandbox.world import train_tasks
from zephyrctl.testing.answers import answer_text
from zephyrctl.testing.teacher import LoopbackTeacher

GARBAGE = 0.03
_TEXTS = (
    "I would rather talk about the weather.", "Rating: 5\nRating: 1", "Text 9\nRating: 5", "{\"ratings\": [5, 5, 5]}",
    "Overall score: 11", "10 out of 1", "<<<TEXT 1>>>\nText 1\nRating: 5\n<<<END>>>", "Verdict: [[A]]",
)  # fmt: skip
_MODES = ("empty", "length", "refusal", "filtered", "nul")


def _draw(body: Mapping[str, Any]) -> float:
    text = json.dumps(body, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _mode(times: int, body: Mapping[str, Any]) -> str:
    draw = _draw(body)
    return _MODES[int(draw * 1e9) % len(_MODES)] if draw < GARBAGE / 2 else "ok"


def _answer(body: Mapping[str, Any]) -> str:
    draw = _draw(body)
    return _TEXTS[int(draw * 1e9) % len(_TEXTS)] if draw < GARBAGE else answer_text(body)


@pytest.fixture(scope="module")
def teacher() -> Iterator[LoopbackTeacher]:
    with LoopbackTeacher(script=_mode, answer=_answer, record_bodies=False) as found:
        yield found


class Folder:
    """A project folder whose endpoint `box` is the teacher."""

    def __init__(self, path: Path, teacher: LoopbackTeacher, rows: int) -> None:
        path.mkdir(parents=True)
        self.path, self.teacher = path, teacher
        (path / "zephyrctl.yaml").write_text(
            f"endpoints: {{box: {{base_url: '{teacher.openai_url}', key_env: BOX_KEY, price: {{in: 1, out: 1}}, "
            "accepts: {schema: false}}}\n"
        )
        known = [task.turns[0] for task in train_tasks(rows * 9 // 10, 3)]
        asked = [known[n % len(known)] for n in range(rows)]
        rows_text = "".join(json.dumps({"prompt": text}) + "\n" for text in asked)
        (path / "prompts.jsonl").write_text(rows_text)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "zephyrctl", *words],
            cwd=self.path,
            env={**os.environ, "BOX_KEY": KEY},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> str:
        process = self.start(*words)
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        return out.strip()

    def killed(self, seconds: float, *words: str) -> None:
        before = self.teacher.requests
        process = self.start(*words)
        while process.poll() is None and self.teacher.requests == before:
            time.sleep(0.005)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def manifest(self, ref: str) -> dict[str, Any]:
        name, _, version = ref.partition("@")
        found: dict[str, Any] = json.loads(
            (self.path / "artifacts" / name / version / "manifest.json").read_text()
        )
        return found


GEN_PREFS = [
    "gen-prefs", "--teacher", "box:judge", "--pool", "box:pool-a", "--pool", "box:pool-b", "--pool", "box:pool-c",
    "--pool", "box:pool-d", "--prompts", "prompts.jsonl", "--yes",
]  # fmt: skip
GEN_SFT = ["gen-sft", "--teacher", "box:teacher", "--prompts", "prompts.jsonl", "--rounds", "1", "--yes"]
SELF_INSTRUCT = [
    "gen-sft", "--method", "self-instruct", "--teacher", "box:teacher", "--prompts", "prompts.jsonl", "--yes",
    "--set", "islands=3", "--set", "max_failures=0.5",
]  # fmt: skip


def check_prefs(manifest: Mapping[str, Any], rows: int) -> None:
    """prompts = kept + dropped; completions = kept + left out; ratings = rated + not applicable + unscored."""
    counts = manifest["counts"]
    assert counts["prompts"] == rows == counts["kept"] + sum(counts["dropped"].values())
    assert counts["kept"] == counts["rows"] == sum(counts["splits"].values())
    assert counts["dropped"]["duplicate"] > 0
    completions, ratings = counts["completions"], counts["ratings"]
    assert completions["asked"] == completions["kept"] + sum(completions["left_out"].values())
    assert sum(completions["left_out"].values()) > 0
    unscored = sum(ratings["unscored"].values())
    assert ratings["asked"] == ratings["rated"] + ratings["not_applicable"] + unscored
    assert sum(counts.get("rejects", {}).values()) == sum(counts["dropped"].values())


def check_pairs(manifest: Mapping[str, Any], feedback: Mapping[str, Any]) -> None:
    counts = manifest["counts"]
    assert counts["prompts"] == feedback["counts"]["kept"]
    assert counts["prompts"] == counts["pairs"] + sum(counts["dropped"].values())
    assert counts["completions"] <= feedback["counts"]["completions"]["kept"]


def check_sft(manifest: Mapping[str, Any], rows: int) -> None:
    counts = manifest["counts"]
    assert counts["seeds"] == rows
    assert counts["seeds"] * 2 == counts["kept"] + sum(counts["dropped"].values()) + counts["not_reached"]


def whole_story(folder: Path, teacher: LoopbackTeacher, rows: int, tasks: int) -> None:
    first = Folder(folder / "one", teacher, rows)
    refs = {
        "prefs": first.run(*GEN_PREFS, "--concurrency", "16"),
        "sft": first.run(*GEN_SFT, "--concurrency", "16"),
        "tasks": first.run(*SELF_INSTRUCT, "--rows", str(tasks), "--concurrency", "16", "--out", "tasks"),
    }
    feedback = first.manifest(refs["prefs"])
    check_prefs(feedback, rows)
    check_pairs(first.manifest(first.run("binarize", "--score", "mean")), feedback)
    check_sft(first.manifest(refs["sft"]), rows)
    digests = {name: first.manifest(ref)["content_digest"] for name, ref in refs.items()}

    second = Folder(folder / "two", teacher, rows)
    second.killed(1.0, *GEN_PREFS, "--concurrency", "64")
    second.killed(0.5, *SELF_INSTRUCT, "--rows", str(tasks), "--concurrency", "64", "--out", "tasks")
    assert second.manifest(second.run(*GEN_PREFS, "--concurrency", "3"))["content_digest"] == digests["prefs"]
    again = second.run(*SELF_INSTRUCT, "--rows", str(tasks), "--concurrency", "3", "--out", "tasks")
    assert second.manifest(again)["content_digest"] == digests["tasks"]

    third = Folder(folder / "three", teacher, rows)
    for words, name in (
        (GEN_PREFS, "prefs"),
        (GEN_SFT, "sft"),
        ([*SELF_INSTRUCT, "--rows", str(tasks)], "tasks"),
    ):
        parts = [third.run(*words, "--shard", f"{n}/3", "--out", name) for n in (1, 2, 3)]
        merged = third.manifest(third.run("artifacts", "merge", *parts, "--out", f"{name}-whole"))
        assert merged["content_digest"] == digests[name]
    check_prefs(third.manifest("prefs-whole@v1"), rows)


def test_counts_add_up_and_digests_agree(tmp_path: Path, teacher: LoopbackTeacher) -> None:
    whole_story(tmp_path, teacher, rows=60, tasks=12)


@pytest.mark.slow
def test_two_thousand_prompts(tmp_path: Path, teacher: LoopbackTeacher) -> None:
    whole_story(tmp_path, teacher, rows=2000, tasks=200)
