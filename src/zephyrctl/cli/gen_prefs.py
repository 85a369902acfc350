"""`zephyrctl gen-prefs`."""

from __future__ import annotations

from typing import Annotated

import typer

from zephyrctl.cli.options import AskingOptions, Session, StageOptions, asking

_Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        help="Model that rates the answers: gpt-6.1-sol, claude-…, sandbox.  [none is needed with --scorer]",
    ),
]
_Pool = Annotated[
    list[str] | None,
    typer.Option(
        "--pool",
        help="A model that answers, such as MODEL?temperature=1 or ckpt/dpo-e3; repeatable.  [default: four of "
        "different strength from the providers whose keys are set, a checkpoint of yours among them]",
    ),
]
_Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompts",
        help="Prompts: a ref (prompts or sft), a file, a folder, or -, each with =WEIGHT; repeatable.  "
        "[default: sft-data, else the shipped seeds]",
    ),
]
_Rows = Annotated[int | None, typer.Option("--rows", min=1, help="How many prompts to use.")]
_N = Annotated[
    int | None, typer.Option("--n", min=1, help="Answers of each member to a prompt.  [default: 1]")
]
_Members = Annotated[
    int | None,
    typer.Option(
        "--members", min=2, help="Members that answer a prompt, drawn from a larger pool.  [default: 4]"
    ),
]
_Principles = Annotated[
    str | None,
    typer.Option(
        "--principles",
        help="ultrafeedback: system messages drawn by weight, or none.  [default: as the edition says; "
        "ultrafeedback in zephyr-7b/paper]",
    ),
]
_Completions = Annotated[
    str | None,
    typer.Option(
        "--completions", help="Rate these existing answers (feedback, or a file); none is asked for."
    ),
]
_JudgeMode = Annotated[
    str | None,
    typer.Option(
        "--judge-mode",
        help="aspects (4 requests a prompt), overall (1 an answer) or both.  [default: both]",
    ),
]
_Scorer = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        help="Who rates: llm, rm:MODEL (a reward model) or ./file.py:fn.  [default: llm, the teacher]",
    ),
]
_SecondJudge = Annotated[
    str | None, typer.Option("--second-judge", help="Another judge for the rows that --when names.")
]
_When = Annotated[
    str | None,
    typer.Option("--when", help="margin<X, conflict, 'margin<X or conflict' or always.  [default: margin<1]"),
]
_Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter", metavar="NAME[=X]", help="What prompts go through before they are asked; repeatable."
    ),
]
_Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="Model whose tokens a filter counts: ckpt/…, org/name.")
]


@asking
def gen_prefs_cli(
    *,
    session: Session,
    options: StageOptions,
    spending: AskingOptions,
    teacher: _Teacher = None,
    pool: _Pool = None,
    prompts: _Prompts = None,
    rows: _Rows = None,
    n: _N = None,
    members: _Members = None,
    principles: _Principles = None,
    completions: _Completions = None,
    judge_mode: _JudgeMode = None,
    scorer: _Scorer = None,
    second_judge: _SecondJudge = None,
    when: _When = None,
    filters: _Filters = None,
    tokenizer: _Tokenizer = None,
) -> None:
    """A pool of models answers each prompt; a teacher rates every answer on four aspects and overall.

    Reads prompts, sft or feedback; writes kind feedback, default name feedback.

    \b
    zephyrctl gen-prefs --teacher sandbox --rows 200
    zephyrctl gen-prefs --teacher gpt-6.1-sol
    zephyrctl gen-prefs --teacher gpt-6.1-sol --pool gpt-6-luna --pool ckpt/sft-e1 --n 2 --prompts prompts.jsonl
    zephyrctl gen-prefs --completions feedback@v1 --scorer rm:./reward-model
    """
    from zephyrctl.cli.stage import run_stage
    from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
    from zephyrctl.stages.gen_prefs.run import run

    flags = {
        "teacher": teacher,
        "pool": pool or None,
        "prompts": prompts or None,
        "rows": rows,
        "n": n,
        "members": members,
        "principles": principles,
        "completions": completions,
        "judge_mode": judge_mode,
        "scorer": scorer,
        "second_judge": second_judge,
        "when": when,
        "filters": filters or None,
        "tokenizer": tokenizer,
    }
    run_stage(
        GenPrefsConfig,
        run,
        flags,
        session=session,
        options=options,
        model=teacher or next(iter(pool or []), None),
        asked=[teacher, *(pool or []), second_judge],
        spending=spending,
    )
