"""`zephyrctl launch`: a training as a job of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from zephyrctl.cli.options import Session, common

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A training as a job of a cluster; writes the script, submits nothing.",
)


@app.callback()
@common
def launch_cli(*, session: Session) -> None:
    """Takes the shared options where they stand before the verb."""


@app.command("slurm")
@common
def slurm_cli(
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- sft|dpo …", help="The training, as you would type it after zephyrctl."),
    ],
    *,
    session: Session,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="GPUs of each machine.  [default: whole machines]")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="Processor cores of each machine.")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option("--time", help="Limit, as Slurm writes it: 4:00:00, 1-12.  [default: the cluster's]"),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the job.  [default: the training's --out, sft, dpo]")
    ] = None,
    save_before: Annotated[
        int,
        typer.Option("--save-before", min=30, help="Save and stop so many seconds before the limit."),
    ] = 300,
    sbatch: Annotated[
        list[str] | None,
        typer.Option("--sbatch", metavar="OPTION=VALUE", help="More for sbatch: partition=gpu; repeatable."),
    ] = None,
    module: Annotated[
        list[str] | None, typer.Option("--module", help="Module to load first; repeatable.")
    ] = None,
    venv: Annotated[
        str | None, typer.Option("--venv", help="Virtual environment that holds zephyrctl.")
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option("--setup", metavar="LINE", help="Line of shell to run first; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write.  [default: stdout]")] = None,
) -> None:
    """Write a batch script for Slurm that runs a training on one machine or several, and goes on in the next turn.

    Before the time is up the training saves at the end of a step, and the job goes back into the queue. All machines
    must see the same store. --num-machines in the training's command says how many; the script adds --machine-rank and
    --rendezvous. Nothing is submitted.

    \b
    zephyrctl launch slurm --gpus 8 --time 12:00:00 -o sft.sbatch -- sft --init ./Mistral-7B-v0.1 --num-machines 2
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.events import Note
    from zephyrctl.training.slurm import SlurmJob, render

    if session.store is not None and "--store" not in command:
        command = [*command, "--store", str(session.store)]
    job = SlurmJob(
        command=tuple(command), gpus=gpus, cpus=cpus, time=time, name=name, save_before=save_before,
        directives=tuple(sbatch or ()), modules=tuple(module or ()), venv=venv, setup=tuple(setup or ()),
    )  # fmt: skip
    _check_options(job.command)
    script = render(job)
    console = Console(session)
    if gpus is not None and cpus is None:
        console(
            Note(
                "--cpus is not said: many clusters then give a machine's processes one core; 8 a GPU are usual"
            )
        )
    document = {"script": script, "machines": job.machines}
    if out is None:
        console.result(script, document)
        return
    _write(out, script)
    console(Note(f"look at it, then: sbatch {out}"))
    console.result(str(out), document | {"path": str(out)})


def _write(out: Path, script: str) -> None:
    """Raises UsageError where the file is there already, or its folder is not."""
    from zephyrctl.errors import UsageError

    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(script)
    except FileExistsError:
        raise UsageError(f"{out} is there already", hint="another name for --out, or remove it") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no folder {out.parent}", hint="make it, or another --out") from None


def _check_options(command: Sequence[str]) -> None:
    """Reads the training's options as that command will, so that a slip is told now and not hours later in the queue.
    Raises UsageError for one that there is not, for a value of another kind, and for one that trains nothing."""
    from zephyrctl.cli.dpo import dpo_cli
    from zephyrctl.cli.sft import sft_cli
    from zephyrctl.errors import UsageError

    for idle in ("--dry-run", "--preview", "--print-command", "--lengths", "--help"):
        if any(word.partition("=")[0] == idle for word in command):
            raise UsageError(f"with {idle} nothing is trained", hint="run it here, without a job")
    one = typer.Typer(rich_markup_mode=None)
    one.command(command[0])({"sft": sft_cli, "dpo": dpo_cli}[command[0]])
    try:
        typer.main.get_command(one).make_context(command[0], list(command[1:]))
    except typer.TyperException as error:
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        raise UsageError(f"{command[0]}: {said}", hint=f"zephyrctl {command[0]} --help") from None
