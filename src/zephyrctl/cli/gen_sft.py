"""`zephyrctl gen-sft`."""

from __future__ import annotations

from typing import Annotated

import typer

from zephyrctl.cli.options import AskingOptions, Session, StageOptions, asking


@asking
def gen_sft_cli(
    *,
    session: Session,
    options: StageOptions,
    spending: AskingOptions,
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher", help="Model that answers and refines: gpt-6.1-sol, claude-…, ckpt/NAME, sandbox."
        ),
    ],
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts", "--seeds", help="Seed prompts: a ref, a JSONL/Parquet/text file, a folder, or -."
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="How many seed prompts to use.")] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=0, help="Refinements of each seed; K of them give K+1 pairs."),
    ] = None,
) -> None:
    """A teacher answers seed prompts, refines each instruction from its answer, and answers again.

    Reads prompts; writes kind sft, default name sft-data. `--teacher sandbox` brings its own prompts and costs nothing.

    \b
    zephyrctl gen-sft --teacher sandbox --rows 200
    zephyrctl gen-sft --teacher gpt-6.1-sol --prompts prompts.jsonl --rounds 2
    """
    from zephyrctl.cli.stage import run_stage
    from zephyrctl.stages.gen_sft.config import GenSftConfig
    from zephyrctl.stages.gen_sft.run import run

    flags = {"teacher": teacher, "prompts": prompts, "rows": rows, "rounds": rounds}
    run_stage(
        GenSftConfig,
        run,
        flags,
        session=session,
        options=options,
        model=teacher,
        asked=[teacher],
        spending=spending,
    )
