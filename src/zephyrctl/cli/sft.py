"""`zephyrctl sft`."""

from __future__ import annotations

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
def sft_cli(
    *,
    session: Session,
    options: StageOptions,
    init: Init = None,
    data: Data = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    lr: LearningRate = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    keep_epochs: KeepEpochs = False,
) -> None:
    """Fine-tune a base model on dialogues (dSFT).

    Reads kind sft (default: newest sft-data) and a model (default: the edition's base); writes kind model, default name
    sft-e<epochs>, linked as ckpt/sft-e<epochs>.

    \b
    zephyrctl sft --init sandbox --epochs 1
    zephyrctl sft --init ./Mistral-7B-v0.1 --data dialogues.jsonl --epochs 1
    zephyrctl sft --init ./Mistral-7B-v0.1 --data sft-data --data hf://HuggingFaceH4/ultrachat_200k=0.1
    """
    from zephyrctl.cli.stage import run_stage
    from zephyrctl.stages.sft.config import SftConfig
    from zephyrctl.stages.sft.run import run

    flags = {
        "init": init,
        "data": data or None,
        "epochs": epochs,
        "max_steps": max_steps,
        "lr": lr,
        "batch_size": batch_size,
        "max_length": max_length,
        "keep_epochs": keep_epochs or None,
    }
    run_stage(SftConfig, run, flags, session=session, options=options, model=init)
