"""`zephyrctl why` and `zephyrctl view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zephyrctl.cli.options import Session, common


@common
def why_cli(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The artifact the row is in.")],
    row_id: Annotated[
        str,
        typer.Argument(metavar="ROW-ID", help="Its id, or how it begins; of a pair also CHOSEN/REJECTED."),
    ],
    *,
    session: Session,
) -> None:
    """Where a row comes from: from a pair back to completions, ratings, prompt and seed, with calls and cents.

    \b
    zephyrctl why prefs 3f2a91
    zephyrctl why sft-data@v1 81bc02 --json
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.cli.stage import open_store
    from zephyrctl.ledger.ledger import Ledger
    from zephyrctl.report.why import lines, why

    console, store = Console(session), open_store(session)
    with Ledger.open(store.ledger_path, emit=console) as ledger:
        found = why(store, ledger, ref, row_id)
    console.result("\n".join(lines(found)), found.document())


@common
def view_cli(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The artifact to look at.")],
    *,
    session: Session,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows, drawn by hash.")] = 100,
    split: Annotated[str | None, typer.Option("--split", help="Only this split: train or test.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page to write.  [default: view-NAME-vN.html]")
    ] = None,
) -> None:
    """Rows as one HTML page that opens without a network; pairs and completions side by side.

    Prints the page's path. An existing page of that name is replaced.

    \b
    zephyrctl view prefs
    zephyrctl view feedback@v1 --rows 20 --out look.html
    """
    from zephyrctl.artifacts import durable
    from zephyrctl.cli.console import Console
    from zephyrctl.cli.stage import open_store
    from zephyrctl.report.view import page

    artifact = open_store(session).resolve(ref)
    path = out or Path(f"view-{artifact.ref.name}-v{artifact.ref.version}.html")
    text = page(artifact, rows, split=split)
    with durable.faults(path):
        durable.replace(path, text.encode())
    Console(session).result(
        str(path), {"page": str(path), "ref": str(artifact.ref), "bytes": len(text.encode())}
    )
