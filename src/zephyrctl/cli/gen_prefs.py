"""`zephyrctl gen-prefs`."""

from __future__ import annotations

from typing import Annotated

import typer

from zephyrctl.cli.options import AskingOptions, Session, StageOptions, asking


@asking
def gen_prefs_cli(
    *,
    session: Session,
    options: StageOptions,
    spending: AskingOptions,
    teacher: Annotated[
        str, typer.Option("--teacher", help="Model that rates the answers: gpt-6.1-sol, claude-…, sandbox.")
    ],
    pool: Annotated[
        list[str] | None,
        typer.Option(
            "--pool", help="A model that answers; give it several times. The sandbox has a pool of four."
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts", help="Prompts: a ref (prompts or sft), a file, a folder, or -.  [default: sft-data]"
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="How many prompts to use.")] = None,
) -> None:
    """A pool of models answers each prompt; a teacher rates every answer on four aspects and overall.

    Reads prompts or sft; writes kind feedback, default name feedback.

    \b
    zephyrctl gen-prefs --teacher sandbox --rows 200
    zephyrctl gen-prefs --teacher gpt-6.1-sol --pool gpt-6-luna --pool ckpt/sft-e1 --prompts prompts.jsonl
    """
    from zephyrctl.cli.stage import run_stage
    from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
    from zephyrctl.stages.gen_prefs.run import run

    flags = {"teacher": teacher, "pool": pool or None, "prompts": prompts or None, "rows": rows}
    run_stage(
        GenPrefsConfig,
        run,
        flags,
        session=session,
        options=options,
        model=teacher,
        asked=[teacher, *(pool or [])],
        spending=spending,
    )
