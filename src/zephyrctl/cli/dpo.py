"""`zephyrctl dpo`."""

from __future__ import annotations

from typing import Annotated

import typer

from zephyrctl.cli.options import Session, StageOptions, stage
from zephyrctl.cli.training_options import (
    BatchSize,
    Data,
    Epochs,
    Init,
    KeepEpochs,
    LearningRate,
    MaxLength,
    MaxSteps,
)


@stage
def dpo_cli(
    *,
    session: Session,
    options: StageOptions,
    init: Init = None,
    data: Data = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    lr: LearningRate = None,
    beta: Annotated[
        float | None, typer.Option("--beta", help="Strength of the pull towards the reference.")
    ] = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    keep_epochs: KeepEpochs = False,
) -> None:
    """Direct preference optimisation of a fine-tuned model on chosen/rejected pairs (dDPO).

    Reads kind prefs (default: newest prefs) and a model, which is also the reference; writes kind model, default name
    dpo-e<epochs>, linked as ckpt/dpo-e<epochs>.

    \b
    zephyrctl dpo --init ckpt/sft-e1 --epochs 3
    zephyrctl dpo --init ckpt/sft-e1 --data pairs.jsonl --data prefs=0.5 --beta 0.05
    """
    from zephyrctl.cli.stage import run_stage
    from zephyrctl.stages.dpo.config import DpoConfig
    from zephyrctl.stages.dpo.run import run

    flags = {
        "init": init,
        "data": data or None,
        "epochs": epochs,
        "max_steps": max_steps,
        "lr": lr,
        "beta": beta,
        "batch_size": batch_size,
        "max_length": max_length,
        "keep_epochs": keep_epochs or None,
    }
    run_stage(DpoConfig, run, flags, session=session, options=options, model=init)
