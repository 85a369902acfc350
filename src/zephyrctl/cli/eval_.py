"""`zephyrctl eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from zephyrctl.cli.options import AskingOptions, Session, StageOptions, asking_whole


@asking_whole
def eval_cli(
    *,
    session: Session,
    options: StageOptions,
    spending: AskingOptions,
    model: Annotated[
        str, typer.Option("--model", help="Model to evaluate: ckpt/NAME, a folder, NAME@vN, sandbox.")
    ],
    judge: Annotated[
        str | None, typer.Option("--judge", help="Model that judges.  [default: sandbox]")
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=2, help="How many prompts to ask.")] = None,
) -> None:
    """Score a model: judged 1-10 over two turns, judged win rate against its base model, exact answers.

    Reads a model; writes kind eval, default name eval-<model>. The suites are the sandbox's: they measure the machinery
    and tiny models exactly, not language models.

    \b
    zephyrctl eval --model ckpt/dpo-e3
    """
    from zephyrctl.cli.stage import run_stage
    from zephyrctl.stages.eval.config import EvalConfig
    from zephyrctl.stages.eval.run import run

    flags = {"model": model, "judge": judge, "rows": rows}
    run_stage(
        EvalConfig,
        run,
        flags,
        session=session,
        options=options,
        model=model,
        asked=[judge],
        spending=spending,
    )
