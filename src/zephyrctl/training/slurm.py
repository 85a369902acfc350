"""A training command as a batch script for Slurm that a person can read, change and submit.

One `zephyrctl` runs on each machine. Some time before the job's end Slurm sends SIGUSR1 to the script, which passes
it on; the training saves a checkpoint at the end of its step and leaves with exit code 75, and the script puts the
job back into the queue, where the same command goes on from the checkpoint.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from zephyrctl.errors import UsageError

TRAINING = ("sft", "dpo")
_TIMES = (
    (re.compile(r"(\d+)"), (60,)),
    (re.compile(r"(\d+):(\d+)"), (60, 1)),
    (re.compile(r"(\d+):(\d+):(\d+)"), (3600, 60, 1)),
    (re.compile(r"(\d+)-(\d+)"), (86400, 3600)),
    (re.compile(r"(\d+)-(\d+):(\d+)"), (86400, 3600, 60)),
    (re.compile(r"(\d+)-(\d+):(\d+):(\d+)"), (86400, 3600, 60, 1)),
)
_DIRECTIVE = re.compile(r"[a-z][a-z-]*(=\S+)?")
_OURS = ("nodes", "ntasks-per-node", "requeue", "signal", "open-mode", "ntasks", "array")


@dataclass(frozen=True)
class SlurmJob:
    """What to run, and on what. `command` begins with `sft` or `dpo`."""

    command: tuple[str, ...]
    gpus: int | None = None
    """GPUs of each machine; None takes whole machines."""
    cpus: int | None = None
    """Processor cores of each machine; None leaves it to the cluster, or takes all of a whole machine."""
    time: str | None = None
    """The limit as Slurm writes it, `[days-]hours:minutes:seconds`; None is the cluster's default."""
    name: str | None = None
    save_before: int = 300
    """Seconds before the limit at which the training is asked to save and stop."""
    directives: tuple[str, ...] = ()
    """More of sbatch's long options, without the dashes: `partition=gpu`."""
    modules: tuple[str, ...] = ()
    venv: str | None = None
    setup: tuple[str, ...] = ()
    """Lines of shell to run before the training."""
    machines: int = field(init=False)

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "machines", _machines(self.command))


def seconds(time: str) -> int:
    """The length of a time limit as Slurm writes it. Raises UsageError for other text."""
    for pattern, units in _TIMES:
        match = pattern.fullmatch(time)
        if match:
            return sum(int(part) * unit for part, unit in zip(match.groups(), units, strict=True))
    raise UsageError(
        f"'{time}' is no time limit", hint="as Slurm writes it: 90 (minutes), 4:00:00, 1-12 (days-hours)"
    )


def render(job: SlurmJob) -> str:
    """The script's text; it ends with a newline and names everything it decides."""
    parts = [_head(job), _directives(job), _surroundings(job), _meeting(job), _command(job), _run(job)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _check(job: SlurmJob) -> None:
    if not job.command or job.command[0] not in TRAINING:
        raise UsageError(
            "after -- comes the training to run, sft or dpo",
            hint="zephyrctl launch slurm -- sft --init ./Mistral-7B-v0.1 --num-machines 2",
        )
    for given in ("machine_rank", "rendezvous"):
        if _value(job.command, given) is not None:
            raise UsageError(
                f"--{given.replace('_', '-')} is set by the script, for each machine", hint="leave it out"
            )
    if "--again" in job.command:
        raise UsageError(
            "with --again every turn of the job would begin anew", hint="leave it out, and name a new --out"
        )
    if job.time is not None and seconds(job.time) <= job.save_before:
        raise UsageError(
            f"a limit of {job.time} leaves no time to train: saving begins {job.save_before} s before it",
            hint="a longer --time, or a smaller --save-before",
        )
    for text in job.directives:
        if _DIRECTIVE.fullmatch(text) is None:
            raise UsageError(f"--sbatch '{text}' is no option of sbatch", hint="--sbatch partition=gpu")
        if text.partition("=")[0] in _OURS:
            raise UsageError(f"--sbatch {text}: the script itself sets {text.partition('=')[0]}")
    if job.name is not None and re.fullmatch(r"[\w.-]+", job.name) is None:
        raise UsageError(f"'{job.name}' is no job name", hint="letters, digits, '.', '_' and '-'")


def _value(command: Sequence[str], field_name: str) -> str | None:
    """What the command says of a setting, as an option or with --set; the last one counts."""
    option = "--" + field_name.replace("_", "-")
    found = None
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == option:
            found = value if equals else following
        elif word == "--set" and following.startswith(field_name + "="):
            found = following.partition("=")[2]
    return found


def _machines(command: Sequence[str]) -> int:
    text = _value(command, "num_machines") or "1"
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--num-machines {text} is no number of machines")
    return int(text)


def _head(job: SlurmJob) -> str:
    many = f"{job.machines} machines" if job.machines > 1 else "one machine"
    each = "all its GPUs" if job.gpus is None else f"{job.gpus} GPU{'s' * (job.gpus != 1)}"
    return (
        "#!/bin/bash\n"
        f"# zephyrctl {job.command[0]} on {many}, {each}{' each' * (job.machines > 1)}.\n"
        "# Before you submit it, see the plan (it costs nothing): the command below with --dry-run."
    )


def _directives(job: SlurmJob) -> str:
    name = job.name or re.sub(r"[^\w.-]+", "-", _value(job.command, "out") or job.command[0])
    size = ["exclusive", "mem=0"] if job.gpus is None else [f"gpus-per-node={job.gpus}"]
    lines = [
        f"job-name={name}",
        f"nodes={job.machines}",
        "ntasks-per-node=1",
        *size,
        *([f"cpus-per-task={job.cpus}"] if job.cpus else []),
        *([f"time={job.time}"] if job.time else []),
        "requeue",
        "open-mode=append",
        f"signal=B:USR1@{job.save_before}",
        *job.directives,
    ]
    if not any(line.startswith("output=") for line in lines):
        lines.insert(1, "output=%x-%j.log")
    return "\n".join(f"#SBATCH --{line}" for line in lines)


def _surroundings(job: SlurmJob) -> str:
    lines = [f"module load {shlex.quote(name)}" for name in job.modules]
    if job.venv:
        lines.append(f"source {shlex.quote(job.venv.rstrip('/') + '/bin/activate')}")
    return "\n".join([*lines, *job.setup])


def _meeting(job: SlurmJob) -> str:
    if job.machines == 1:
        return ""
    return (
        "# The processes meet at the first machine, at a port that jobs on it are unlikely to share.\n"
        'host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        "port=$((20000 + SLURM_JOB_ID % 10000))"
    )


def _command(job: SlurmJob) -> str:
    lines = [f"zephyrctl {job.command[0]}"]
    alone = False
    for word in job.command[1:]:
        if alone and not word.startswith("--"):
            lines[-1] += " " + shlex.quote(word)
            alone = False
        else:
            lines.append(shlex.quote(word))
            alone = word.startswith("--")
    if job.gpus is not None and _value(job.command, "num_processes") is None:
        lines.append(f"--num-processes {job.gpus * job.machines}")
    if job.machines > 1:
        lines.append('--rendezvous "$host:$port"')
    return "command=(\n" + "".join(f"    {line}\n" for line in lines) + ")"


def _run(job: SlurmJob) -> str:
    rank = ' --machine-rank "$SLURM_NODEID"' if job.machines > 1 else ""
    return f"""\
# On each machine. A machine that fails ends the others at once (--kill-on-bad-exit); one that was asked to stop and
# has saved (exit code 75) has not failed. The traps keep the shell alive until the training has saved.
on_machine='
    trap "asked=1" USR1
    trap ":" TERM
    "$@"{rank}
    code=$?
    if [ -n "$asked" ] && [ "$code" -eq 75 ]; then exit 0; fi
    exit "$code"
'

# {job.save_before} s before the limit Slurm sends USR1 here, and srun passes it on. TERM ends the work for good.
trap 'asked=1; kill -USR1 "$!"' USR1
trap 'kill -TERM "$!"' TERM
srun --kill-on-bad-exit=1 --cpu-bind=none bash -c "$on_machine" machine "${{command[@]}}" &
while kill -0 "$!" 2>/dev/null; do wait "$!"; done  # a signal ends a wait early
wait "$!"
code=$?

# Go on in the next turn. Where the training was done meanwhile, that turn finds its result and ends.
if [ -n "$asked" ] && [ "$code" -eq 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
