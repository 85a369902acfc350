"""`zephyrctl import`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from zephyrctl.cli.options import Session, common


@common
def import_cli(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A JSONL, JSON, Parquet or text file, a folder, a ref, or - for stdin."
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
        typer.Option("--out", help="Name of the artifact.  [default: the name the next stage looks for]"),
    ] = None,
    on_bad_row: Annotated[
        Literal["fail", "skip"],
        typer.Option("--on-bad-row", help="Stop at rows that cannot be used, or leave them out."),
    ] = "fail",
    note: Annotated[str | None, typer.Option("--note", help="A sentence to keep in the manifest.")] = None,
) -> None:
    """Take your own data or model into the store; the shape of the rows is detected and stated.

    Writes the kind that --as names. Rows that cannot be used are named as file:line.

    \b
    zephyrctl import pairs.jsonl --as prefs
    zephyrctl import ./my-model --as model --out sft-mine
    """
    from zephyrctl.artifacts.importing import import_source
    from zephyrctl.artifacts.step import Work
    from zephyrctl.cli.console import Console
    from zephyrctl.cli.stage import open_store

    console = Console(session)
    work = Work(open_store(session), console)
    result = import_source(work, source, kind, out, on_bad_row=on_bad_row, note=note)
    artifact = result.artifact
    assert artifact is not None
    document = {
        "ref": str(artifact.ref),
        "kind": artifact.kind,
        "already": result.already,
        "path": str(artifact.path),
        "content_digest": artifact.digest,
        "shape": (artifact.manifest.model_extra or {}).get("shape"),
        "counts": artifact.manifest.counts,
    }
    console.result(str(artifact.ref), document)
