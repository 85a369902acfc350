"""`zephyrctl ledger`: what was asked and paid, and moving it between ledgers.

The listing is the result: stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zephyrctl.cli import ledger_batch
from zephyrctl.cli.ledger_batch import RunOption
from zephyrctl.cli.ledger_files import existing, spooled, writable
from zephyrctl.cli.options import Session, common

if TYPE_CHECKING:
    from zephyrctl.artifacts.store import Store
    from zephyrctl.cli.console import Console
    from zephyrctl.ledger.absorb import Taken
    from zephyrctl.ledger.ledger import Ledger
    from zephyrctl.ledger.report import Scope

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The ledger of all requests and replies: costs, single calls, export, import, merge, checks, batches.",
)
app.add_typer(ledger_batch.app, name="batch")

RefOption = Annotated[
    str | None,
    typer.Option(
        "--ref", metavar="REF", help="Only the calls behind this artifact and all it was made from."
    ),
]


@app.callback()
@common
def ledger_cli(*, session: Session) -> None:
    """Takes the shared options where they stand before the verb."""


@app.command("cost")
@common
def cost_cli(
    *,
    session: Session,
    by: Annotated[
        Literal["model", "step", "provider", "day"], typer.Option("--by", help="What the rows stand for.")
    ] = "model",
    ref: RefOption = None,
    run: RunOption = None,
) -> None:
    """What was paid, what is in doubt, and for how many calls and tokens.

    In doubt is what may have been billed although no reply arrived, at the most it can have cost. A price that is not
    known is shown as unknown. With --ref, calls count that another step paid and this one used again.

    \b
    zephyrctl ledger cost
    zephyrctl ledger cost --by step --ref prefs@v2
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.cli.ledger_text import costs_text
    from zephyrctl.ledger.report import costs, total

    console = Console(session)
    with existing(session) as (store, ledger):
        found = costs(ledger, by, _scope(store, ledger, console, ref, run))
    whole = total(found)
    document = {
        "ledger": str(ledger.path),
        "by": by,
        "rows": [c.document() for c in found],
        "total": whole.document(),
    }
    console.result(costs_text(by, found, whole), document)


@app.command("show")
@common
def show_cli(
    *,
    session: Session,
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="The first digits of a key, at least 6: that call in full."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Only models whose name contains this.")
    ] = None,
    outcome: Annotated[
        Literal["text", "empty", "length", "reasoning_cut", "refusal", "filtered"] | None,
        typer.Option("--outcome", help="Only replies of this kind."),
    ] = None,
    state: Annotated[
        Literal["ok", "error", "timeout", "in_doubt", "cancelled", "inflight", "batched", "waiting"] | None,
        typer.Option("--state", help="Only calls in this state; waiting = written down and not sent."),
    ] = None,
    ref: RefOption = None,
    run: RunOption = None,
    count: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many calls to list.")] = 20,
) -> None:
    """List the newest calls, or show one in full: request, attempts, reply.

    \b
    zephyrctl ledger show --outcome refusal
    zephyrctl ledger show 3fa94c0d
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.cli.ledger_text import call_text, lines_text
    from zephyrctl.ledger.report import Filter, call, find_key, newest
    from zephyrctl.redact import redact

    console = Console(session)
    with existing(session) as (store, ledger):
        if key is not None:
            found = call(ledger, find_key(ledger, key))
            console.result(redact(call_text(found)), found)
            return
        wanted = Filter(model, outcome, state, _scope(store, ledger, console, ref, run))
        lines = newest(ledger, wanted, count)
    console.result(
        redact(lines_text(lines)), {"ledger": str(ledger.path), "calls": [vars(line) for line in lines]}
    )


@app.command("export")
@common
def export_cli(
    *,
    session: Session,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write, compressed if it ends in .gz.  [default: stdout]"),
    ] = None,
    ref: RefOption = None,
    run: RunOption = None,
) -> None:
    """Write requests, replies, attempts and costs as JSON Lines, one request a line.

    With --ref just the calls behind one artifact: who has them can make it again without paying.

    \b
    zephyrctl ledger export --ref prefs@v2 -o prefs-calls.jsonl.gz
    """
    import sys

    from zephyrctl.cli.console import Console
    from zephyrctl.errors import UsageError
    from zephyrctl.events import Note
    from zephyrctl.ledger.transfer import export, export_file

    console = Console(session)
    to_stdout = out is None or str(out) == "-"
    if to_stdout and session.json_:
        raise UsageError("stdout cannot carry both the calls and a document", hint="name a file: --out FILE")
    with existing(session) as (store, ledger):
        scope = _scope(store, ledger, console, ref, run)
        if out is None or to_stdout:
            given = export(ledger, sys.stdout.buffer, scope)
            sys.stdout.flush()
        else:
            given = export_file(ledger, out, scope)
    console(Note(f"{given.requests:,} requests, {given.replies:,} of them with a reply"))
    if not to_stdout:
        console.result(str(out), {"file": str(out), **vars(given)})


@app.command("import")
@common
def import_cli(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What ledger export wrote; - is stdin.")],
    *,
    session: Session,
) -> None:
    """Take in calls that `ledger export` wrote. What is here already stays as it is.

    Every key and every reply is checked before anything is written; a wrong line ends with exit code 5 and its place.

    \b
    zephyrctl ledger import prefs-calls.jsonl.gz
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.ledger.transfer import load

    console = Console(session)
    with writable(session) as ledger, spooled(file) as (path, shown):
        taken = load(ledger, path, shown)
    _told(console, ledger, {shown: taken})


@app.command("merge")
@common
def merge_cli(
    others: Annotated[list[Path], typer.Argument(metavar="LEDGER…", help="Files of other ledgers.")],
    *,
    session: Session,
) -> None:
    """Take in the calls of other ledgers, such as those of the parts of a sharded step. They stay as they are.

    Replies are joined by key. Where two ledgers have different replies to one request, the one that is here stays.

    \b
    zephyrctl ledger merge artifacts/ledger.shard-*-of-8.sqlite
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.ledger.transfer import merge

    console = Console(session)
    with writable(session) as ledger:
        taken = {str(other): merge(ledger, other) for other in others}
    _told(console, ledger, taken)


@app.command("verify")
@common
def verify_cli(*, session: Session) -> None:
    """Read the whole ledger and compute every key, hash and sum anew; exit code 5 when something does not fit.

    \b
    zephyrctl ledger verify
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.cli.ledger_text import verdict_text
    from zephyrctl.errors import IntegrityError
    from zephyrctl.ledger.check import verify

    console = Console(session)
    with existing(session) as (_, ledger):
        verdict = verify(ledger)
    document = {"ledger": str(ledger.path), **verdict.document()}
    error = IntegrityError(
        f"the ledger {ledger.path} is damaged: "
        + "; ".join(f"{f.count:,} {f.what}" for f in verdict.findings),
        hint="put a good copy in its place; what can still be read: zephyrctl ledger export",
    )
    if not verdict.whole and session.json_:
        # the one document tells both what was found and that it is a failure
        console.result("", {**document, "error": error.as_dict()})
        raise typer.Exit(error.exit_code)
    console.result(verdict_text(ledger.path, verdict), document)
    if not verdict.whole:
        raise error


def _scope(store: Store, ledger: Ledger, console: Console, ref: str | None, run: str | None) -> Scope:
    from zephyrctl.errors import RefNotFound, UsageError
    from zephyrctl.events import Warning_
    from zephyrctl.ledger.report import EVERYTHING, Scope, has_calls

    if ref is None and run is None:
        return EVERYTHING
    if ref is not None and run is not None:
        raise UsageError("--ref and --run both choose calls", hint="give one of them")
    if run is not None:
        scope = Scope((run[:16],))
    else:
        from zephyrctl.artifacts.behind import steps_behind

        behind = steps_behind(store, str(ref))
        scope = Scope(tuple(key[:16] for key in behind.step_keys))
        if behind.lost:
            console(
                Warning_(
                    f"no longer in the store, so their calls are not among these: {', '.join(behind.lost)}"
                )
            )
    if not has_calls(ledger, scope):
        raise RefNotFound(
            f"the ledger {ledger.path} has no calls of {ref or run}",
            hint="zephyrctl ledger cost --by step lists the steps that it knows",
        )
    return scope


def _told(console: Console, ledger: Ledger, taken: dict[str, Taken]) -> None:
    from zephyrctl.cli.ledger_text import taken_text
    from zephyrctl.events import Warning_

    for place, each in taken.items():
        if each.disagreeing:
            keys = ", ".join(key[:12] for key in each.examples)
            console(
                Warning_(
                    f"{place}: {each.disagreeing:,} replies differ from those here, which stay (keys {keys})"
                )
            )
    document: dict[str, Any] = {"ledger": str(ledger.path), "taken": {k: vars(v) for k, v in taken.items()}}
    console.result("\n".join(taken_text(place, each) for place, each in taken.items()), document)
