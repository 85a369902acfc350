"""`zephyrctl binarize`."""

from __future__ import annotations

from typing import Annotated

import typer

from zephyrctl.cli.options import Session, StageOptions, stage


@stage
def binarize_cli(
    *,
    session: Session,
    options: StageOptions,
    feedback: Annotated[
        str | None,
        typer.Option("--feedback", help="Rated answers: a ref or a file.  [default: newest feedback]"),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option("--score", help="What ranks the answers: overall, mean, weighted, or aspect:NAME."),
    ] = None,
    rejected: Annotated[
        str | None,
        typer.Option(
            "--rejected",
            help="Which lower answer is rejected: random (paper), worst, nearest, quantile=Q, or all-pairs.",
        ),
    ] = None,
    ties: Annotated[
        str | None,
        typer.Option("--ties", help="Chosen against rejected of equal score: drop, keep, or margin=X."),
    ] = None,
    drop: Annotated[
        str | None,
        typer.Option("--drop", metavar="FILE", help="Flagged ids that take no part: JSONL, JSON or text."),
    ] = None,
) -> None:
    """The best-rated answer of each prompt becomes chosen, a random lower one rejected.

    Reads kind feedback, also UltraFeedback's own files; writes kind prefs, default name prefs, and beside it
    prefs-best: the best answers as sft data. --edition zephyr-h4 pairs as the published data set was.

    \b
    zephyrctl binarize
    zephyrctl binarize --feedback feedback@v2 --score mean --ties margin=0.5
    zephyrctl binarize --score weighted --set "weights={helpfulness: 2, honesty: 1}"
    zephyrctl binarize --feedback ./ultrafeedback --edition zephyr-h4
    """
    from zephyrctl.cli.stage import run_stage
    from zephyrctl.stages.binarize.config import BinarizeConfig
    from zephyrctl.stages.binarize.run import run

    flags = {"feedback": feedback, "score": score, "rejected": rejected, "ties": ties, "drop": drop}
    run_stage(BinarizeConfig, run, flags, session=session, options=options)
