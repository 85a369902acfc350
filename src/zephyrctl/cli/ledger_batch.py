"""`zephyrctl ledger batch`: batches at providers, and requests as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zephyrctl.cli.ledger_files import existing
from zephyrctl.cli.options import Session, common

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Batches at providers, and requests as files for a machine without a network.",
)
RunOption = Annotated[
    str | None,
    typer.Option("--run", metavar="ID", help="Only the calls of this step (16 digits of its step key)."),
]


@app.callback()
@common
def batch_cli(*, session: Session) -> None:
    """Takes the shared options where they stand before the verb."""


@app.command("ls")
@common
def batch_ls_cli(
    *,
    session: Session,
    all_: Annotated[bool, typer.Option("--all", help="Also batches that are done.")] = False,
) -> None:
    """List the batches that are open at providers.

    \b
    zephyrctl ledger batch ls
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.cli.ledger_text import batches_text
    from zephyrctl.events import Note

    console = Console(session)
    with existing(session) as (_, ledger):
        found = ledger.batches(open_only=not all_)
    if not found and not session.json_:
        console(Note("no batch is open" if not all_ else "there are no batches"))
    document = [{**vars(one), "keys": len(one.keys)} for one in found]
    console.result(batches_text(found), {"ledger": str(ledger.path), "batches": document})


@app.command("export")
@common
def batch_export_cli(
    *,
    session: Session,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    origin: Annotated[str | None, typer.Option("--origin", help="Only requests to this endpoint.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only requests to this model.")] = None,
    run: RunOption = None,
) -> None:
    """Write requests that have no reply as OpenAI batch lines, for `vllm run-batch` where there is no network.

    A stage whose endpoint is `offline` in the project file writes its requests down; take the file to the cluster,
    and its output back with `ledger batch import`.

    \b
    zephyrctl ledger batch export -o requests.jsonl
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.errors import RefNotFound
    from zephyrctl.providers.batchfile import export_requests

    console = Console(session)
    with existing(session) as (_, ledger):
        count = export_requests(ledger, out, origin=origin, model=model, run=run and run[:16])
    if not count:
        raise RefNotFound(
            f"no request in {ledger.path} waits for a reply", hint="zephyrctl ledger show --state waiting"
        )
    console.result(str(out), {"file": str(out), "requests": count})


@app.command("import")
@common
def batch_import_cli(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What vllm run-batch wrote.")],
    *,
    session: Session,
    price: Annotated[
        str | None,
        typer.Option("--price", metavar="in=…,out=…", help="US dollars per million tokens.  [default: free]"),
    ] = None,
) -> None:
    """Take in the replies to exported requests; then run the stage again, which finds them.

    \b
    zephyrctl ledger batch import replies.jsonl
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.cli.ledger_text import imported_text
    from zephyrctl.errors import IntegrityError, RefNotFound
    from zephyrctl.events import Warning_
    from zephyrctl.money import FREE, parse_price
    from zephyrctl.providers.batchfile import import_replies

    console = Console(session)
    with existing(session) as (_, ledger):
        found = import_replies(ledger, file, price=parse_price(price) if price else FREE)
    for bad in found.bad[:20]:
        console(Warning_(bad))
    console.result(imported_text(file, found), {"file": str(file), **vars(found)})
    if found.bad:
        raise IntegrityError(
            f"{len(found.bad)} lines of {file} are no replies; the first: {found.bad[0]}",
            hint="the others were taken in; mend or remove those lines and import the file again",
        )
    if found.unknown and not (found.stored or found.already or found.errors):
        raise RefNotFound(
            f"none of the {found.unknown} replies in {file} answers a request of {ledger.path}",
            hint="--store names the store whose requests were exported",
        )
