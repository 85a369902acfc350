"""`python -m zephyrctl.testing.teacher`: what it prints, the files it keeps, and its end."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wire_clients import eventually, question

from zephyrctl.testing.answers import answer_text
from zephyrctl.testing.command import read_options

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "zephyrctl.testing.teacher", *options]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def status_of(port: int, text: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/v1/chat/completions", json.dumps(question(text)))
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_teacher_in_another_process(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    port_file, stats_file = tmp_path / "port", tmp_path / "stats.json"
    teacher = start(
        "--script",
        "429,ok",
        "--port-file",
        str(port_file),
        "--stats-file",
        str(stats_file),
        "--latency",
        "0.01",
        "--price",
        "in=0,out=1000",
    )
    assert eventually(port_file.exists)
    port = int(port_file.read_text(encoding="utf-8"))
    assert [status_of(port, "a"), status_of(port, "a"), status_of(port, "b")] == [429, 200, 200]
    assert eventually(
        lambda: stats_file.exists() and json.loads(stats_file.read_text(encoding="utf-8"))["billed"] == 2
    )
    words = len(answer_text(question("a")).split())
    teacher.send_signal(number)
    said, complaints = teacher.communicate(timeout=20)
    assert teacher.returncode == 0
    assert complaints == ""
    assert said.splitlines() == [
        f"export OPENAI_BASE_URL=http://127.0.0.1:{port}/v1",
        f"export ANTHROPIC_BASE_URL=http://127.0.0.1:{port}",
        f"3 requests, 2 billed (${2 * words / 1000:.4f}), 0 rejected",
    ]
    stats = json.loads(stats_file.read_text(encoding="utf-8"))
    assert (stats["requests"], stats["billed"]) == (3, 2)
    assert sorted(stats["billed_by_body"].values()) == [1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["port", "stats.json"]


def test_options() -> None:
    options = read_options(["--script", "429:int, ok", "--slow-share", "0.01:30", "--max-in-flight", "10"])
    assert options.script == ["429:int", "ok"]
    assert options.slow_share == (0.01, 30.0)
    assert options.max_in_flight == 10
    assert read_options(["--always", "503"]).always == "503"
    assert read_options(["--price", "in=3,out=15"]).price.output == 15.0


def test_a_price_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(["--price", "cheap"])
    assert "a price is in=" in capsys.readouterr().err


def test_an_unknown_mode_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read_options(["--script", "429,okay"])
    assert caught.value.code == 2
    assert "no mode 'okay'" in capsys.readouterr().err


def test_help_lists_the_modes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(["--help"])
    shown = capsys.readouterr().out
    assert "drop " in shown
    assert "--stats-file" in shown
