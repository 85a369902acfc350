"""Measures the caller against other clients on one mock teacher: `python benchmarks/callers.py`.

The teacher answers after 100 ms and runs in a process of its own; so does every client, each in its turn, so that a
busy machine hits all alike. Writes benchmarks/callers.json and prints tables.

clients   calls a second and processor time per call: zephyrctl with its ledger, the bare openai SDK, and, where
          --curator-python and --distilabel-python name their environments, those two
limited   600 calls to a server that rejects more than 10 in flight: time and rejections, against the retrying SDK
tail      1 % of the replies take 30 times as long: makespan against the ideal for the same calls
memory    100,000 calls in waves, memory after each, then all of them replayed from the ledger
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = HERE / "peers"
LATENCY = 0.1
LIMIT = 10
LIMITED_CALLS = 600
LIMITED_CONCURRENCY = 100
Table = list[tuple[str, ...]]


@dataclass(frozen=True)
class Client:
    """A client and the interpreter that has it."""

    name: str
    script: str
    python: str
    task: str = "calls"

    def run(self, url: str, calls: int, concurrency: int, task: str = "") -> dict[str, Any]:
        """One run in a process and a folder of its own; what it measured of itself."""
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            command = [self.python, str(PEERS / self.script), "--url", url, "--calls", str(calls)]
            command += ["--concurrency", str(concurrency), "--folder", folder]
            command += ["--task", task or self.task]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(PEERS)},
            )
        if done.returncode:
            raise SystemExit(f"{self.name} failed:\n{done.stderr[-2000:]}")
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return result


OURS = Client("zephyrctl", "ours.py", sys.executable)
SDK = Client("openai SDK", "openai_sdk.py", sys.executable)


@contextmanager
def teacher(*options: str) -> Iterator[str]:
    """The mock teacher in a process of its own; its OpenAI address."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", "zephyrctl.testing.teacher", "--fast", "--latency", str(LATENCY)]
        server = subprocess.Popen(
            [*command, "--port-file", str(port_file), *options], stdout=subprocess.DEVNULL
        )
        try:
            while not port_file.exists():
                if server.poll() is not None:
                    raise SystemExit("the mock teacher did not start")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port_file.read_text().strip()}/v1"
        finally:
            server.terminate()
            server.wait()


def counts(url: str) -> dict[str, Any]:
    """What the teacher counted."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def clients(options: argparse.Namespace) -> tuple[dict[str, Any], Table]:
    """Calls a second and processor time per call of every client, at both concurrencies."""
    everyone = [OURS, SDK]
    if options.curator_python:
        everyone.append(Client("curator", "curator_client.py", options.curator_python))
    if options.distilabel_python:
        theirs = ("distilabel_client.py", options.distilabel_python)
        everyone.append(Client("distilabel", *theirs))
        everyone.append(Client("distilabel, batch 50", *theirs, task="default"))
    for name in ("curator", "distilabel"):
        if not getattr(options, f"{name}_python"):
            print(f"{name} is left out: --{name}-python names no interpreter that has it")
    report: dict[str, Any] = {}
    rows: Table = [
        ("client", "in flight", "calls/s", "CPU ms/call", "zephyrctl is faster by", "most in flight")
    ]
    for concurrency in (100, 400):
        runs: dict[str, list[dict[str, Any]]] = {client.name: [] for client in everyone}
        for turn in range(options.repeat):
            for client in everyone:
                if turn and client.name.startswith("distilabel"):
                    continue  # minutes a run, and nowhere near the others
                with teacher() as url:
                    result = client.run(url, options.calls, concurrency)
                    result["most_in_flight"] = counts(url)["most_in_flight"]
                runs[client.name].append(result)
        found = {name: _speed(results, options.calls) for name, results in runs.items()}
        ours = found[OURS.name]["calls_per_second"]
        for name, speed in found.items():
            speed["ratio"] = round(ours / speed["calls_per_second"], 2)
            rate, cpu, ratio = (speed[key] for key in ("calls_per_second", "cpu_ms_per_call", "ratio"))
            shown = (f"{rate:,.0f}", f"{cpu:.2f}", f"{ratio:.1f}x", str(speed["most_in_flight"]))
            rows.append((f"{name} {speed['version']}", str(concurrency), *shown))
        report[f"concurrency {concurrency}"] = found
    return report, rows


def _speed(runs: list[dict[str, Any]], calls: int) -> dict[str, Any]:
    """The median of several runs."""
    for run in runs:
        if run["answered"] < calls:
            raise SystemExit(f"only {run['answered']} of {calls} calls were answered")
    return {
        "calls_per_second": round(statistics.median(calls / run["seconds"] for run in runs), 1),
        "cpu_ms_per_call": round(statistics.median(1000 * run["cpu"] / calls for run in runs), 3),
        "most_in_flight": max(run["most_in_flight"] for run in runs),
        "runs": len(runs),
        "version": runs[0]["version"],
    }


def limited(options: argparse.Namespace) -> tuple[dict[str, Any], Table]:
    """A server that rejects what comes beyond 10 calls in flight."""
    ideal = LIMITED_CALLS / LIMIT * LATENCY
    report: dict[str, Any] = {"ideal_seconds": ideal}
    rows: Table = [("client", "seconds / ideal", "rejected of 600", "share")]
    for client in (OURS, SDK):
        runs = []
        for _ in range(options.repeat):
            with teacher("--max-in-flight", str(LIMIT)) as url:
                result = client.run(url, LIMITED_CALLS, LIMITED_CONCURRENCY, "retry")
                runs.append((result["seconds"], counts(url)["rejected"], result["answered"]))
        seconds, rejected = (statistics.median(run[i] for run in runs) for i in (0, 1))
        report[client.name] = {
            "seconds_of_ideal": round(seconds / ideal, 3),
            "rejected": rejected,
            "rejected_share": round(rejected / LIMITED_CALLS, 3),
            "answered": min(run[2] for run in runs),
        }
        share = f"{rejected / LIMITED_CALLS:.1%}"
        rows.append((client.name, f"{seconds / ideal:.2f}", f"{rejected:g}", share))
    return report, rows


def tail(options: argparse.Namespace) -> tuple[dict[str, Any], Table]:
    """One reply in a hundred takes 30 times as long."""
    runs = []
    for _ in range(options.repeat):
        with teacher("--slow-share", "0.01:30") as url:
            runs.append(OURS.run(url, options.calls, 100, "tail"))
    ratio = statistics.median(run["seconds"] / run["ideal"] for run in runs)
    report = {"makespan_of_ideal": round(ratio, 3), "ideal_seconds": round(runs[0]["ideal"], 2)}
    return report, [("makespan / ideal", f"{ratio:.2f}")]


def memory(options: argparse.Namespace) -> tuple[dict[str, Any], Table]:
    """Memory over many calls, and how fast they are replayed."""
    with teacher() as url:
        result = OURS.run(url, options.many, 400, "memory")
    resident, replay = result["resident_mib"], result["replay"]
    settled = resident[len(resident) // 5]
    report = {
        "calls": options.many,
        "resident_mib_by_5000_calls": resident,
        "growth_mib_after_a_fifth": round(resident[-1] - settled, 1),
        "replayed_per_second": round(replay["answered"] / replay["seconds"]),
        "replay_cpu_ms_per_row": round(1000 * replay["cpu"] / max(1, replay["answered"]), 4),
    }
    rows: Table = [
        ("memory after a fifth, at the end (MiB)", f"{settled:.0f}, {resident[-1]:.0f}"),
        ("rows replayed a second", f"{report['replayed_per_second']:,}"),
    ]
    return report, rows


SECTIONS: dict[str, Callable[[argparse.Namespace], tuple[dict[str, Any], Table]]] = {
    "clients": clients,
    "limited": limited,
    "tail": tail,
    "memory": memory,
}


def machine() -> dict[str, Any]:
    """What was measured on."""
    return {
        "command": "python benchmarks/callers.py",
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "packages": {name: version(name) for name in ("openai", "aiohttp", "httpx2", "zephyrctl")},
    }


def show(name: str, rows: Table) -> None:
    """One section as columns."""
    print(name)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--curator-python", metavar="PATH")
    parser.add_argument("--distilabel-python", metavar="PATH")
    parser.add_argument("--calls", type=int, default=5_000, help="calls of each run")
    parser.add_argument("--many", type=int, default=100_000, help="calls for the section memory")
    parser.add_argument("--repeat", type=int, default=3, help="runs of which the median is told")
    parser.add_argument("--out", type=Path, default=HERE / "callers.json")
    options = parser.parse_args()
    report: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    report["machine"] = machine()
    for name in options.only:
        report[name], rows = SECTIONS[name](options)
        show(name, rows)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
