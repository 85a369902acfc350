"""The options of `sft` and `dpo`, declared once. Each is a field of the stage's config under the same name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from zephyrctl.cli.options import Command, stage, with_parameters

_KNOBS: dict[str, Any] = {
    "init": Annotated[
        str | None,
        typer.Option("--init", help="Model to start from: ckpt/NAME, a folder, NAME@vN, org/name, sandbox."),
    ],
    "data": Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="REF[=WEIGHT]",
            help="Training data: a ref, a file, a folder, hf://org/name; repeatable. =0.5: half its rows; =2: twice.",
        ),
    ],
    "epochs": Annotated[float | None, typer.Option("--epochs", help="Passes over the data.")],
    "max_steps": Annotated[
        int | None, typer.Option("--max-steps", min=1, help="Stop after this many optimiser steps.")
    ],
    "lr": Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")],
    "batch_size": Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, help="Global batch: rows per optimiser step, over all processes."
        ),
    ],
    "max_length": Annotated[
        int | None, typer.Option("--max-length", min=8, help="Longest row in tokens; cuts are counted.")
    ],
    "chat_template": Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            help="A template that ships (zephyr) or a .jinja file, in place of the model's.",
        ),
    ],
    "keep_epochs": Annotated[
        bool,
        typer.Option(
            "--keep-epochs", help="Also keep a model for each epoch (NAME.epoch1, …) to compare them."
        ),
    ],
    "lora": Annotated[
        bool,
        typer.Option("--lora", help="Train adapters; the artifact holds the merged model and the adapter."),
    ],
    "max_dropped": Annotated[
        float | None,
        typer.Option(
            "--max-dropped", help="Share of the rows that may be dropped before the stage stops (exit 9)."
        ),
    ],
    "engine": Annotated[
        str | None, typer.Option("--engine", help="auto, single, ddp, fsdp2, zero2 or zero3.")
    ],
    "num_processes": Annotated[
        int | None,
        typer.Option(
            "--num-processes", min=1, help="Processes over all machines; default: one per GPU, or one."
        ),
    ],
    "num_machines": Annotated[
        int | None, typer.Option("--num-machines", min=1, help="Machines that run this command on one store.")
    ],
    "machine_rank": Annotated[
        int | None,
        typer.Option("--machine-rank", min=0, help="Number of this machine; 0 writes the artifact."),
    ],
    "rendezvous": Annotated[
        str | None,
        typer.Option("--rendezvous", metavar="HOST:PORT", help="Where the processes meet: machine 0."),
    ],
    "attn": Annotated[str | None, typer.Option("--attn", help="auto, flash, sdpa or eager.")],
    "report_to": Annotated[
        list[str] | None,
        typer.Option("--report-to", help="tensorboard, trackio, wandb or mlflow; repeatable."),
    ],
    "verify_resume": Annotated[
        int | None,
        typer.Option(
            "--verify-resume", min=1, help="On resuming, replay up to N steps first and compare bit for bit."
        ),
    ],
    "preview": Annotated[
        int | None,
        typer.Option("--preview", min=1, help="Show N rows with the tokens that bear loss; nothing else."),
    ],
    "lengths": Annotated[
        Path | None,
        typer.Option(
            "--lengths", help="With --dry-run: plan from a .npy file of token lengths, without data or model."
        ),
    ],
    "for_hardware": Annotated[
        str | None,
        typer.Option("--for-hardware", help="With --lengths: machines to plan for, such as 16xA100-80GB."),
    ],
    "offline_dir": Annotated[
        Path | None,
        typer.Option(
            "--offline-dir",
            help="A folder made by `zephyrctl fetch`: no network is used.  [env: ZEPHYRCTL_OFFLINE_DIR]",
        ),
    ],
    "print_command": Annotated[
        bool,
        typer.Option("--print-command", help="Print what each process of this machine runs; nothing else."),
    ],
}


def training(command: Command) -> Command:
    """The command with the options of every stage and those above, which arrive as `knobs`, by config field, None where
    nothing was said; and `offline_dir`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        # A switch left off and a list left empty say nothing; a 0 and an empty text do, and are not to be lost.
        said = {name: kwargs.pop(name) for name in _KNOBS}
        knobs = {name: None if value is False or value == [] else value for name, value in said.items()}
        if knobs["lengths"] is not None:
            knobs["lengths"] = str(knobs["lengths"])
        command(*args, knobs=knobs, offline_dir=knobs.pop("offline_dir"), **kwargs)

    return stage(with_parameters(wrapper, command, _KNOBS, "knobs", "offline_dir"))
