"""One paid job for the crash tests: a project folder, a loopback teacher with a price, and the command to kill."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyrctl.testing.teacher import LoopbackTeacher

KEY = "sk-canary-5f1d9c0b7e2a4866"


def prompts(count: int) -> str:
    """`count` different prompts as JSON Lines."""
    rows = [{"prompt": f"Sort these words: pear{n} apple{n} fig{n}"} for n in range(count)]
    return "".join(json.dumps(row) + "\n" for row in rows)


@dataclass
class Job:
    """A folder in which `zephyrctl gen-sft` asks `teacher`, an endpoint named box, for answers."""

    folder: Path
    teacher: LoopbackTeacher
    rows: int = 40
    concurrency: int = 8
    dollars: float = 1000.0
    """The price of a million tokens, in and out."""

    def prepare(self) -> Job:
        """Write the project file and the prompts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "zephyrctl.yaml").write_text(
            f"endpoints: {{box: {{base_url: '{self.teacher.openai_url}', key_env: BOX_KEY, "
            f"price: {{in: {self.dollars}, out: {self.dollars}}}}}}}\n"
        )
        (self.folder / "prompts.jsonl").write_text(prompts(self.rows))
        return self

    @property
    def command(self) -> list[str]:
        """The command line, without consent to spend."""
        return [
            sys.executable, "-m", "zephyrctl", "gen-sft", "--teacher", "box:teacher", "--prompts", "prompts.jsonl",
            "--rounds", "1", "--concurrency", str(self.concurrency),
        ]  # fmt: skip

    def start(self, *more: str) -> subprocess.Popen[str]:
        """The command as a process of its own."""
        return subprocess.Popen(
            [*self.command, *more],
            cwd=self.folder,
            env={**os.environ, "BOX_KEY": KEY},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *more: str) -> subprocess.CompletedProcess[str]:
        """The command, run to its end."""
        process = self.start(*(more or ("--yes",)))
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def zephyrctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command in the same folder."""
        return subprocess.run(
            [sys.executable, "-m", "zephyrctl", *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def kill_after(self, seconds: float, *more: str) -> bool:
        """Start the command and kill it `seconds` after its first request; whether it was still at work."""
        before = self.teacher.requests
        process = self.start(*(more or ("--yes",)))
        while process.poll() is None and self.teacher.requests == before:
            time.sleep(0.002)
        time.sleep(seconds)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return alive

    def in_flight(self) -> int:
        """Attempts that the ledger believes to be on their way; with the process dead they are in doubt."""
        return int(self.query("SELECT COUNT(*) FROM attempt WHERE state = 'inflight'")[0][0])

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the ledger."""
        path = self.folder / "artifacts" / "ledger.sqlite"
        if not path.exists():
            return [(0,)]
        connection = sqlite3.connect(path)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def data(self, name: str = "sft-data") -> dict[str, bytes]:
        """The bytes of every data file of the newest version, and its content digest."""
        version = max((self.folder / "artifacts" / name).glob("v*"), key=lambda p: int(p.name[1:]))
        files = {str(f.relative_to(version)): f.read_bytes() for f in sorted(version.rglob("*.parquet"))}
        files["digest"] = json.loads((version / "manifest.json").read_text())["content_digest"].encode()
        return files
