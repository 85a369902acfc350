"""The batch script is valid shell, says what was asked, and does the right thing with every exit code and signal."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zephyrctl.errors import UsageError
from zephyrctl.training.slurm import SlurmJob, render, seconds

TWO = SlurmJob(
    command=(
        "sft",
        "--init",
        "./base",
        "--data",
        "my data.jsonl=0.5",
        "--num-machines",
        "2",
        "--keep-epochs",
    ),
    gpus=8,
    cpus=64,
    time="1-12:30:00",
    directives=("partition=gpu", "account=lab"),
    modules=("cuda/12.8",),
    venv="/scratch/my venv",
    setup=("export NCCL_DEBUG=WARN",),
)


def valid(script: str) -> bool:
    return subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0


def test_the_script_says_what_was_asked() -> None:
    script = render(TWO)
    assert valid(script)
    directives = [
        line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")
    ]
    assert directives == [
        "job-name=sft", "output=%x-%j.log", "nodes=2", "ntasks-per-node=1", "gpus-per-node=8", "cpus-per-task=64",
        "time=1-12:30:00", "requeue", "open-mode=append", "signal=B:USR1@300", "partition=gpu", "account=lab",
    ]  # fmt: skip
    lines = script.splitlines()
    assert lines.index("module load cuda/12.8") < lines.index("source '/scratch/my venv/bin/activate'")
    assert lines.index("export NCCL_DEBUG=WARN") < lines.index("command=(")
    assert lines[lines.index("command=(") : lines.index(")") + 1] == [
        "command=(", "    zephyrctl sft", "    --init ./base", "    --data 'my data.jsonl=0.5'",
        "    --num-machines 2", "    --keep-epochs", "    --num-processes 16", '    --rendezvous "$host:$port"', ")",
    ]  # fmt: skip
    assert max(map(len, lines)) <= 120


def test_one_whole_machine_needs_no_meeting() -> None:
    script = render(SlurmJob(("dpo", "--init", "ckpt/sft-e1", "--out", "my dpo"), save_before=120))
    assert valid(script)
    assert "#SBATCH --exclusive\n#SBATCH --mem=0\n" in script
    assert "#SBATCH --job-name=my-dpo\n" in script
    assert "signal=B:USR1@120" in script
    for absent in ("--rendezvous", "machine-rank", "--time=", "--num-processes", "SLURM_NODEID"):
        assert absent not in script


@pytest.mark.parametrize(
    ("said", "machines"),
    [
        (("--num-machines=4",), 4),
        (("--set", "num_machines=3"), 3),
        (("--num-machines", "2", "--num-machines", "5"), 5),
        ((), 1),
    ],
)
def test_the_number_of_machines_is_read_off_the_command(said: tuple[str, ...], machines: int) -> None:
    assert SlurmJob(("sft", *said)).machines == machines


def test_processes_that_were_said_stay_as_said() -> None:
    assert "--num-processes 4\n" in render(SlurmJob(("sft", "--num-processes", "4"), gpus=8))
    assert "num-processes" not in render(SlurmJob(("sft", "--set", "num_processes=4"), gpus=8))


@pytest.mark.parametrize(
    "wrong",
    [
        {"command": ()},
        {"command": ("eval", "--model", "x")},
        {"command": ("sft", "--machine-rank", "0")},
        {"command": ("sft", "--rendezvous=host:1")},
        {"command": ("sft", "--num-machines", "two")},
        {"command": ("sft", "--again")},
        {"command": ("sft", "--num-machines", "0")},
        {"time": "4h"},
        {"time": "5"},
        {"name": "a b"},
        {"directives": ("--partition=gpu",)},
        {"directives": ("partition=a b",)},
        {"directives": ("partition=gpu\nrm -rf /",)},
        {"directives": ("nodes=4",)},
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SlurmJob(**{"command": ("sft",), **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90", 5400), ("90:30", 5430), ("4:00:00", 14400), ("1-12", 129600), ("1-12:30", 131400),
        ("2-00:00:01", 172801),
    ],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_reads_them(text: str, length: int) -> None:
    assert seconds(text) == length


words = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.lists(words, max_size=4))
def test_any_text_reaches_the_command_unchanged(values: list[str]) -> None:
    command = ("sft", *(part for value in values for part in ("--note", value)))
    script = render(SlurmJob(command))
    array = script[script.index("command=(") : script.index("\n)\n\n# On each machine") + 2]
    shown = subprocess.run(
        ["bash", "-c", array + "\nprintf '%s\\0' \"${command[@]}\""], capture_output=True, check=True
    )
    assert shown.stdout.decode().split("\0")[:-1] == ["zephyrctl", *command]


# What stands in for Slurm: srun starts the command once per machine and passes USR1 and TERM on, as the real one
# does; the training writes down how it was called and ends as the test says.
STAND_INS = {
    "srun": """\
while [[ $1 == --* ]]; do shift; done
pids=()
trap 'for each in "${pids[@]}"; do kill -USR1 -- -$each; done' USR1
trap 'for each in "${pids[@]}"; do kill -TERM -- -$each; done' TERM
for ((node = 0; node < MACHINES; node++)); do SLURM_NODEID=$node setsid "$@" & pids+=($!); done
worst=0
for p in "${pids[@]}"; do
    while kill -0 "$p" 2>/dev/null; do wait "$p"; done
    wait "$p"; code=$?
    if ((code > worst)); then worst=$code; fi
done
exit $worst
""",
    "scontrol": """\
if [ "$1" = show ]; then echo node-a; echo node-b; else echo "$@" >> "$SEEN/requeued"; fi
""",
    "zephyrctl": """\
trap 'sleep 0.2; echo saved >> "$SEEN/saved"; exit 75' USR1 TERM
printf '%s\\n' "$*" > "$SEEN/call-${SLURM_NODEID:-alone}"
if [ -n "$ENDS" ]; then exit "$ENDS"; fi
for ((i = 0; i < 200; i++)); do sleep 0.05; done
""",
}


@dataclass(frozen=True)
class Cluster:
    """A folder with the stand-ins, and how many machines there are."""

    folder: Path
    machines: int = 2

    def start(self, job: SlurmJob, ends: str) -> subprocess.Popen[bytes]:
        """The script, running as Slurm would run it."""
        script = self.folder / "job.sbatch"
        script.write_text(render(job), encoding="utf-8")
        environment = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "SEEN": str(self.folder),
            "MACHINES": str(self.machines),
            "ENDS": ends,
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "node-[a-b]",
        }
        return subprocess.Popen(["bash", str(script)], env=environment, stderr=subprocess.DEVNULL)

    def seen(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def wait_for(self, *names: str) -> None:
        """Returns once all have been written."""
        end = time.monotonic() + 20
        while not all(self.seen(name) for name in names):
            assert time.monotonic() < end, f"none of {names}"
            time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    for name, body in STAND_INS.items():
        path = tmp_path / name
        path.write_text(f"#!{shutil.which('bash')}\n{body}", encoding="utf-8")
        path.chmod(0o755)
    return Cluster(tmp_path)


PLAIN = replace(TWO, modules=(), venv=None, setup=())


@pytest.mark.parametrize("code", [0, 9, 75, 3])
def test_a_training_that_ends_by_itself_ends_the_job_with_its_code(cluster: Cluster, code: int) -> None:
    assert cluster.start(PLAIN, str(code)).wait(30) == code
    assert cluster.seen("requeued") == []
    expected = "sft --init ./base --data my data.jsonl=0.5 --num-machines 2 --keep-epochs --num-processes 16"
    for node in range(2):
        assert cluster.seen(f"call-{node}") == [f"{expected} --rendezvous node-a:23456 --machine-rank {node}"]


@pytest.mark.parametrize("machines", [1, 2])
def test_the_warning_saves_and_puts_the_job_back_into_the_queue(cluster: Cluster, machines: int) -> None:
    cluster = replace(cluster, machines=machines)
    job = PLAIN if machines == 2 else SlurmJob(("sft", "--init", "./base"))
    running = cluster.start(job, "")
    cluster.wait_for(*(f"call-{node}" for node in range(machines)))
    running.send_signal(signal.SIGUSR1)
    assert running.wait(30) == 0
    assert cluster.seen("saved") == ["saved"] * machines
    assert cluster.seen("requeued") == ["requeue 123456"]


def test_a_cancelled_job_saves_and_does_not_come_back(cluster: Cluster) -> None:
    running = cluster.start(PLAIN, "")
    cluster.wait_for("call-0", "call-1")
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 75
    assert cluster.seen("saved") == ["saved"] * 2
    assert cluster.seen("requeued") == []
