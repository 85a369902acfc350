"""`zephyrctl artifacts`: look at what was made, check it, name it, take it away.

The listing is the result: stdout.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zephyrctl.cli.options import Session, common

if TYPE_CHECKING:
    from zephyrctl.artifacts.artifact import Artifact
    from zephyrctl.artifacts.store import Store

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The store: list, show, check, print, tag and remove artifacts.",
)

RefArgument = Annotated[
    str, typer.Argument(metavar="REF", help="name, name@v3, name:tag or name@sha256:1a2b3c4d.")
]


@app.callback()
@common
def artifacts_cli(*, session: Session) -> None:
    """Takes the shared options where they stand before the verb."""


@app.command("ls")
@common
def ls_cli(
    *,
    session: Session,
    name: Annotated[str | None, typer.Argument(help="Only the versions of this name.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind: sft, prefs, model, …")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also side outputs: prefs-best, kept epochs.")] = False,
) -> None:
    """List versions, newest first, with their scores and the settings that differ among them.

    Side outputs are shown with --all, or when they are named.

    \b
    zephyrctl artifacts ls
    zephyrctl artifacts ls prefs --json
    """
    from zephyrctl.artifacts.listing import list_versions
    from zephyrctl.cli.artifact_text import versions_text
    from zephyrctl.cli.console import Console
    from zephyrctl.events import Note

    console, store = Console(session), _store(session)
    found = list_versions(store, name, kind=kind, sides=all_ or name is not None)
    if not found and not session.json_:
        console(Note(f"nothing in {store.root} yet; zephyrctl demo or zephyrctl gen-sft makes something"))
    console.result(versions_text(found), {"store": str(store.root), "artifacts": found})


@app.command("show")
@common
def show_cli(ref: RefArgument, *, session: Session) -> None:
    """Show one version: what it is, what it was made from and how, and its content digest.

    \b
    zephyrctl artifacts show prefs
    zephyrctl artifacts show dpo-e3@v1 --json
    """
    from zephyrctl.artifacts.listing import describe
    from zephyrctl.cli.artifact_text import manifest_text
    from zephyrctl.cli.console import Console

    artifact = _store(session).resolve(ref)
    Console(session).result(manifest_text(artifact), describe(artifact))


@app.command("lineage")
@common
def lineage_cli(ref: RefArgument, *, session: Session) -> None:
    """Show the tree of everything a version was made from.

    \b
    zephyrctl artifacts lineage dpo-e3
    """
    from zephyrctl.artifacts.lineage import lineage
    from zephyrctl.cli.console import Console

    tree = lineage(_store(session), ref)
    Console(session).result("\n".join(tree.lines()), tree.document())


@app.command("verify")
@common
def verify_cli(
    *,
    session: Session,
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[REF…]", help="What to check.  [default: all]")
    ] = None,
) -> None:
    """Read every file again and compare it with its manifest; ends with exit code 5 when something is
    damaged.

    \b zephyrctl artifacts verify zephyrctl artifacts verify prefs@v1 dpo-e3
    """
    from zephyrctl.artifacts.listing import verify
    from zephyrctl.cli.artifact_text import verdicts_text
    from zephyrctl.cli.console import Console
    from zephyrctl.errors import IntegrityError

    found = verify(_store(session), refs or ["all"])
    damaged = [entry["ref"] for entry in found if not entry["ok"]]
    document: dict[str, Any] = {"ok": not damaged, "checked": len(found), "artifacts": found}
    error = IntegrityError(
        f"{len(damaged)} of {len(found)} damaged: {', '.join(damaged[:12])}",
        hint="bring the files back from a copy, or make the version again with its command and --again",
    )
    if damaged and session.json_:
        # the one document tells both what was found and that it is a failure
        Console(session).result("", {**document, "error": error.as_dict()})
        raise typer.Exit(error.exit_code)
    Console(session).result(verdicts_text(found), document)
    if damaged:
        raise error


@app.command("cat")
@common
def cat_cli(
    ref: RefArgument,
    *,
    session: Session,
    split: Annotated[str | None, typer.Option("--split", help="Only this split: train or test.")] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=0, help="At most so many rows.")] = None,
    rejects: Annotated[
        bool, typer.Option("--rejects", help="The dropped rows with their reasons instead.")
    ] = False,
) -> None:
    """Print rows as JSON lines, after all files were checked.

    \b
    zephyrctl artifacts cat prefs --split test --rows 3
    zephyrctl artifacts cat feedback@v1 --rejects
    """
    from itertools import islice

    from zephyrctl.cli.artifact_text import write_lines
    from zephyrctl.cli.console import Console

    artifact = _store(session).resolve(ref)
    found = islice(_rows(artifact, split, rejects), rows)
    if session.json_:
        Console(session).result("", {"ref": str(artifact.ref), "rows": list(found)})
    else:
        write_lines(found)


@app.command("tag")
@common
def tag_cli(
    ref: RefArgument,
    tag: Annotated[str, typer.Argument(metavar="TAG", help="The tag; name:TAG then means this version.")],
    *,
    session: Session,
    delete: Annotated[
        bool, typer.Option("--delete", help="Take the tag away; REF is then the name alone.")
    ] = False,
) -> None:
    """Give a version a tag, or move the tag to it.

    \b
    zephyrctl artifacts tag prefs@v3 release
    zephyrctl artifacts tag prefs release --delete
    """
    from zephyrctl.artifacts import tags
    from zephyrctl.cli.console import Console

    store = _store(session)
    if delete:
        tags.untag(store, ref, tag)
        Console(session).result(f"{ref}:{tag}", {"untagged": f"{ref}:{tag}"})
        return
    artifact = tags.tag(store, ref, tag)
    shown = f"{artifact.ref.name}:{tag}"
    Console(session).result(
        shown, {"tag": shown, "ref": str(artifact.ref), "content_digest": artifact.digest}
    )


@app.command("rm")
@common
def rm_cli(
    ref: RefArgument,
    *,
    session: Session,
    yes: Annotated[
        bool, typer.Option("--yes", help="Also where others were made from it or a tag names it.")
    ] = False,
) -> None:
    """Move one version to the store's .trash folder. Its number is never given again.

    \b
    zephyrctl artifacts rm prefs@v2
    """
    from zephyrctl.artifacts import tags
    from zephyrctl.cli.console import Console

    console = Console(session)
    gone = tags.remove(_store(session), ref, yes=yes, emit=console)
    console.result(str(gone), {"removed": str(gone)})


def _rows(artifact: Artifact, split: str | None, rejects: bool) -> Iterator[dict[str, Any]]:
    from zephyrctl.errors import UsageError

    if rejects:
        return artifact.rejects()
    if split is not None and split not in artifact.splits():
        known = ", ".join(artifact.splits()) or "none"
        raise UsageError(f"{artifact.ref} has no split '{split}'", hint=f"its splits: {known}")
    return (row.model_dump(mode="json") for _, _, row in artifact.rows(split))


def _store(session: Session) -> Store:
    from zephyrctl.cli.stage import open_store

    return open_store(session)
