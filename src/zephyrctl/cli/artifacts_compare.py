"""`zephyrctl artifacts diff` and `zephyrctl artifacts gc`."""

from __future__ import annotations

from typing import Annotated

import typer

from zephyrctl.cli.options import Session, common

FromArgument = Annotated[
    str, typer.Argument(metavar="A", help="name, name@v3, name:tag or name@sha256:1a2b3c4d.")
]
ToArgument = Annotated[str, typer.Argument(metavar="B", help="The version to compare it with.")]


@common
def diff_cli(one: FromArgument, two: ToArgument, *, session: Session) -> None:
    """What changed from one version to another: settings, counts, rows by id, flipped pairs, distributions.

    \b
    zephyrctl artifacts diff prefs@v1 prefs@v2
    zephyrctl artifacts diff feedback@v1 feedback --json
    """
    from zephyrctl.artifacts.diff import diff
    from zephyrctl.cli.console import Console, plain_table
    from zephyrctl.cli.stage import open_store

    store = open_store(session)
    found = diff(store.resolve(one), store.resolve(two))
    texts = [f"{table.title}\n{plain_table(table.columns, table.rows)}" for table in found.tables]
    document = found.document
    same = (
        f"{document['from']} and {document['to']} have the same content" if document["same_content"] else ""
    )
    Console(session).result("\n\n".join([*([same] if same else []), *texts]), document)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


@common
def gc_cli(
    *,
    session: Session,
    days: Annotated[
        float, typer.Option("--days", min=0, help="Work that nobody touched for so long is abandoned.")
    ] = 7.0,
    unused: Annotated[
        bool, typer.Option("--unused", help="Also older versions that nothing needs and no tag names.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Take it away; without it nothing is touched.")
    ] = False,
) -> None:
    """Show what nothing needs any more (abandoned work, old trash, partial versions), and with --yes take it away.

    Versions go to the store's .trash folder, which a later gc empties. The ledger is never touched.

    \b
    zephyrctl artifacts gc
    zephyrctl artifacts gc --unused --yes
    """
    from zephyrctl.artifacts.gc import find_garbage, take_away
    from zephyrctl.cli.console import Console, plain_table
    from zephyrctl.cli.stage import open_store
    from zephyrctl.events import Note

    console, store = Console(session), open_store(session)
    found = find_garbage(store, days=days, unused=unused)
    total = sum(item.bytes for item in found)
    freed = take_away(store, found, console) if yes else 0
    rows = tuple((item.what, item.name, _size(item.bytes), item.why) for item in found)
    if not found:
        console(Note(f"nothing to take away in {store.root}"))
    elif not yes:
        console(Note(f"{_size(total)} could be taken away; nothing was touched (--yes does it)"))
    document = {"garbage": [item.as_dict() for item in found], "bytes": total, "taken": yes, "freed": freed}
    console.result(plain_table(("what", "name", "size", "why"), rows) if found else "", document)
