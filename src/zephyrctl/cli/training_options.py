"""The knobs that `sft` and `dpo` share, as option types."""

from __future__ import annotations

from typing import Annotated

import typer

Init = Annotated[
    str | None,
    typer.Option("--init", help="Model to start from: ckpt/NAME, a folder, NAME@vN, org/name, sandbox."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="REF[=WEIGHT]",
        help="Training data: a ref, a file, a folder, hf://org/name; repeatable. =0.5: half its rows, =2: all twice.",
    ),
]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Passes over the data.")]
MaxSteps = Annotated[
    int | None, typer.Option("--max-steps", min=1, help="Stop after this many optimiser steps.")
]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Global batch: rows per optimiser step, over all processes."),
]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", min=8, help="Longest row in tokens; cuts are counted.")
]
KeepEpochs = Annotated[
    bool,
    typer.Option("--keep-epochs", help="Also keep a model for each epoch (NAME.epoch1, …) to compare them."),
]
