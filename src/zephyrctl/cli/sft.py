"""`zephyrctl sft`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zephyrctl.cli.options import Session, StageOptions
from zephyrctl.cli.training_options import training


@training
def sft_cli(
    *, session: Session, options: StageOptions, knobs: dict[str, Any], offline_dir: Path | None
) -> None:
    """Fine-tune a base model on dialogues (dSFT).

    Reads kind sft (default: newest sft-data) and a model (default: the edition's base); writes kind model, default name
    sft-e<epochs>, linked as ckpt/sft-e<epochs>.

    \b
    zephyrctl sft --init sandbox --epochs 1
    zephyrctl sft --init ./Mistral-7B-v0.1 --data dialogues.jsonl --epochs 1 --num-processes 8
    zephyrctl sft --init ./Mistral-7B-v0.1 --data sft-data --data hf://HuggingFaceH4/ultrachat_200k=0.1
    zephyrctl sft --edition zephyr-7b/paper --lengths lengths.npy --dry-run
    """
    from zephyrctl.cli.stage import run_training
    from zephyrctl.stages.sft.config import SftConfig
    from zephyrctl.stages.sft.run import run

    run_training(SftConfig, run, knobs, session=session, options=options, offline_dir=offline_dir)
