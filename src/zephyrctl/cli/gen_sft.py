"""`zephyrctl gen-sft`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from zephyrctl.cli.options import AskingOptions, Session, StageOptions, asking


class Method(StrEnum):
    """How the dialogues are made."""

    zephyr = "zephyr"
    self_instruct = "self-instruct"
    ultrachat = "ultrachat"


Teacher = Annotated[
    str,
    typer.Option(
        "--teacher", help="Model that makes the dialogues: gpt-6.1-sol, claude-…, ckpt/NAME, sandbox."
    ),
]
HowMade = Annotated[
    Method | None,
    typer.Option(
        "--method",
        help="zephyr: answer seeds, refine, answer again (default); self-instruct: new tasks after the seeds; "
        "ultrachat: both sides of dialogues on topics.",
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompts",
        "--seeds",
        metavar="REF[=WEIGHT]",
        help="Seed prompts: a ref, a JSONL/Parquet/text file, a folder, or -; repeatable. Default: the "
        "shipped ones.",
    ),
]
Topics = Annotated[
    str | None,
    typer.Option("--topics", metavar="FILE", help="ultrachat: one topic a line. Default: the shipped ones."),
]
Rows = Annotated[
    int | None,
    typer.Option("--rows", min=1, help="How many seeds to use, tasks to make, or dialogues to hold."),
]
Rounds = Annotated[
    int | None,
    typer.Option("--rounds", min=0, help="zephyr: refinements of each seed; K of them give up to K+1 pairs."),
]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="NAME[=VALUE]",
        help="A filter for finished dialogues, such as persona or max-tokens=2048; repeatable, in order.",
    ),
]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="Model whose tokens the length filters count.")
]


@asking
def gen_sft_cli(
    *,
    session: Session,
    options: StageOptions,
    spending: AskingOptions,
    teacher: Teacher,
    method: HowMade = None,
    prompts: Prompts = None,
    topics: Topics = None,
    rows: Rows = None,
    rounds: Rounds = None,
    filters: Filters = None,
    tokenizer: Tokenizer = None,
) -> None:
    """A teacher makes dialogues worth imitating, from seed prompts or from topics.

    Reads prompts (or nothing); writes kind sft, default name sft-data. `--teacher sandbox` brings its own prompts and
    costs nothing. Prompts that overlap with evaluation suites are left out before anything is paid.

    \b
    zephyrctl gen-sft --teacher sandbox --rows 200
    zephyrctl gen-sft --teacher gpt-6.1-sol
    zephyrctl gen-sft --teacher gpt-6.1-sol --prompts prompts.jsonl --prompts more@v2=0.5 --rounds 2
    zephyrctl gen-sft --teacher gpt-6.1-sol --method self-instruct --rows 2000
    zephyrctl gen-sft --teacher gpt-6.1-sol --method ultrachat --topics topics.txt --rows 500 --filter persona
    """
    from zephyrctl.cli.stage import run_stage
    from zephyrctl.stages.gen_sft.config import GenSftConfig
    from zephyrctl.stages.gen_sft.run import run

    flags = {
        "teacher": teacher,
        "method": None if method is None else method.value,
        "prompts": prompts or None,
        "topics": topics,
        "rows": rows,
        "rounds": rounds,
        "filters": filters or None,
        "tokenizer": tokenizer,
    }
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
