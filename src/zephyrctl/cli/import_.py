"""`zephyrctl import`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from zephyrctl.cli.options import Session, common

Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter", metavar="NAME[=VALUE]", help="Filter the rows, e.g. truecase; repeatable, in order."
    ),
]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="Model whose tokens the length filters count.")
]
Suites = Annotated[
    list[str] | None,
    typer.Option("--suites", help="Evaluation suites to keep out; repeatable.  [default: the project's]"),
]
Contaminated = Annotated[
    Literal["drop", "keep"],
    typer.Option("--contaminated", help="What becomes of rows that overlap with a suite."),
]
TestFraction = Annotated[
    float, typer.Option("--test-fraction", help="Share of prompts held out where the source has no splits.")
]
OnBadRow = Annotated[
    Literal["fail", "skip"],
    typer.Option("--on-bad-row", help="Stop at rows that cannot be used, or leave them out."),
]


@common
def import_cli(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A JSONL, JSON, Parquet or text file, a folder, hf://org/name, a ref, or - for stdin.",
        ),
    ],
    *,
    session: Session,
    kind: Annotated[
        Literal["prompts", "sft", "feedback", "prefs", "eval", "model"],
        typer.Option("--as", help="What the source is to be."),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out", help="Name of the artifact.  [default: prompts, sft-data, feedback, prefs, by kind]"
        ),
    ] = None,
    filters: Filters = None,
    tokenizer: Tokenizer = None,
    suites: Suites = None,
    contaminated: Contaminated = "drop",
    test_fraction: TestFraction = 0.1,
    on_bad_row: OnBadRow = "fail",
    note: Annotated[str | None, typer.Option("--note", help="A sentence to keep in the manifest.")] = None,
) -> None:
    """Take your own data or model into the store; the shape of the rows is detected and stated.

    Writes the kind that --as names. Rows that cannot be used are named as file:line. Of files train_sft, train_prefs,
    train_gen those of the kind are read (for prompts: gen).

    \b
    zephyrctl import pairs.jsonl --as prefs
    zephyrctl import hf://HuggingFaceH4/ultrachat_200k --as sft --filter truecase
    zephyrctl import ./my-model --as model --out sft-mine
    """
    from zephyrctl.artifacts.step import Work
    from zephyrctl.cli.console import Console
    from zephyrctl.cli.stage import open_store
    from zephyrctl.config import Layer, build
    from zephyrctl.stages.importing.config import ImportConfig
    from zephyrctl.stages.importing.run import run

    console = Console(session)
    typed = {
        "source": source,
        "kind": kind,
        "out": out,
        "filters": filters or None,
        "tokenizer": tokenizer,
        "suites": suites or None,
        "contaminated": contaminated,
        "test_fraction": test_fraction,
        "on_bad_row": on_bad_row,
        "note": note,
    }
    config = build(ImportConfig, [Layer("the command line", typed)]).config
    assert isinstance(config, ImportConfig)
    result = run(config, Work(open_store(session), console, project=session.project))
    artifact = result.artifact
    assert artifact is not None
    extra = artifact.manifest.model_extra or {}
    document = {
        "ref": str(artifact.ref),
        "kind": artifact.kind,
        "already": result.already,
        "path": str(artifact.path),
        "content_digest": artifact.digest,
        "shape": extra.get("shape"),
        "counts": artifact.manifest.counts,
        "decontamination": extra.get("decontamination"),
    }
    console.result(str(artifact.ref), document)
