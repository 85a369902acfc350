"""`zephyrctl dpo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zephyrctl.cli.options import Session, StageOptions
from zephyrctl.cli.training_options import training


@training
def dpo_cli(
    *,
    session: Session,
    options: StageOptions,
    knobs: dict[str, Any],
    offline_dir: Path | None,
    beta: Annotated[
        float | None, typer.Option("--beta", help="Strength of the pull towards the reference.")
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            "--loss", help="sigmoid, ipo, hinge, robust, apo_zero, apo_down, simpo or ./my.py:fn; repeatable."
        ),
    ] = None,
    verify_ref: Annotated[
        int | None,
        typer.Option(
            "--verify-ref",
            min=1,
            help="Recompute N of the reference's log-probabilities; stop if they differ.",
        ),
    ] = None,
) -> None:
    """Direct preference optimisation of a fine-tuned model on chosen/rejected pairs (dDPO).

    Reads kind prefs (default: newest prefs) and a model, which is also the reference; writes kind model, default name
    dpo-e<epochs>, linked as ckpt/dpo-e<epochs>.

    \b
    zephyrctl dpo --init ckpt/sft-e1 --epochs 3
    zephyrctl dpo --init ckpt/sft-e1 --data pairs.jsonl --data prefs=0.5 --beta 0.05
    zephyrctl dpo --init ckpt/sft-e1 --loss ipo --lora
    """
    from zephyrctl.cli.stage import run_training
    from zephyrctl.stages.dpo.config import DpoConfig
    from zephyrctl.stages.dpo.run import run

    knobs = knobs | {"beta": beta, "loss": loss or None, "verify_ref": verify_ref}
    run_training(DpoConfig, run, knobs, session=session, options=options, offline_dir=offline_dir)
