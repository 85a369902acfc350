"""A server that is not ours: `transformers serve` with the sandbox's base model is a member of the pool."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STARTUP_SECONDS = 120
MODEL = Path(str(resources.files("zephyrctl.sandbox"))) / "base"
WORDS = [
    "hammer",
    "peach",
    "bench",
    "shirt",
    "clamp",
    "drill",
    "truck",
    "stool",
    "chair",
    "melon",
    "dress",
    "boots",
]
PROMPTS = ["Write in capital letters: " + " ".join((WORDS[n:] + WORDS[:n])[:5]) for n in range(len(WORDS))]
"""Long enough answers: short ones can be equal by chance."""


@dataclass(frozen=True)
class Served:
    """A running server: its address, and what it has written so far."""

    url: str
    log: Path

    @property
    def answered(self) -> int:
        """Chat requests that it answered."""
        return self.log.read_text(errors="replace").count('"POST /v1/chat/completions HTTP/1.1" 200')


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason=f"transformers serve needs {package} (transformers[serving])")
    folder = tmp_path_factory.mktemp("box")
    log = folder / "serve.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(MODEL)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        _wait(server, port, log)
        yield Served(f"http://127.0.0.1:{port}/v1", log)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            written = log.read_text(errors="replace")[-1500:]
            assert server.poll() is None, f"transformers serve ended by itself:\n{written}"
            if time.monotonic() > deadline:
                pytest.skip(f"transformers serve was not ready within {STARTUP_SECONDS} s")
            time.sleep(0.5)


def _gen_prefs(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    # the server takes requests for exactly the path that it was started with
    member = f"box:{MODEL}"
    command = [str(Path(sys.executable).with_name("zephyrctl")), "gen-prefs", "--teacher", "sandbox"]
    command += ["--pool", member, "--pool", member, "--pool", "sandbox:pool-a", "--pool", "sandbox:pool-d"]
    command += [
        "--prompts",
        "prompts.jsonl",
        "--set",
        "max_tokens=64",
        "--set",
        "max_failures=1.0",
        "--json",
        *more,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_server_of_others_answers_in_the_pool(box: Served, tmp_path: Path) -> None:
    (tmp_path / "zephyrctl.yaml").write_text(
        f"endpoints:\n  box:\n    base_url: {box.url}\n    price: {{in: 0, out: 0}}\n", encoding="utf-8"
    )
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    before = box.answered
    first = _gen_prefs(tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    asked = box.answered - before
    assert asked == 2 * len(PROMPTS), "each member asks for a draw of its own"
    document = json.loads(first.stdout)
    assert document["ref"] == "feedback@v1"

    shown = subprocess.run(
        [str(Path(sys.executable).with_name("zephyrctl")), "artifacts", "show", "feedback@v1", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    manifest = json.loads(shown.stdout)
    (teacher,) = [t for t in manifest["teachers"] if t["model"] == f"box:{MODEL}"]
    assert teacher["calls"] == 2 * len(PROMPTS)
    assert teacher["served"] == [f"{MODEL}@main"]
    assert teacher["cost_usd"] == 0
    assert teacher["ignored"] == {"draws": 1}
    assert teacher["tokens"]["completion"] > 0

    # it takes `temperature` and decides for itself: its two draws are one answer, which has to be said
    assert "equal texts" in first.stderr, first.stderr[-3000:]

    again = _gen_prefs(tmp_path, "--again")
    assert again.returncode == 0, again.stderr[-3000:]
    assert box.answered - before == asked, "what was paid is not asked again"
