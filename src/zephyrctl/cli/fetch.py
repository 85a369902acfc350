"""`zephyrctl fetch`: what a machine without a network will need, and the look at it there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zephyrctl.cli.options import Session, common

if TYPE_CHECKING:
    from zephyrctl.artifacts.bundle import Checked
    from zephyrctl.artifacts.bundle_fetch import Wanted
    from zephyrctl.artifacts.digests import HashCache
    from zephyrctl.events import Emit

_MODELS = ("init", "model", "judge", "teacher", "pool", "tokenizer")
_DATA = ("data", "prompts", "seeds")
"""Fields of an edition that may name something of the Hub."""


@common
def fetch_cli(
    *,
    session: Session,
    things: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="THING",
            help="An edition, a suite, a model org/name or hf:org/name@revision, a data set hf://org/name; repeatable.",
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Folder to fill.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="DIR", help="Compare every file of a filled folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes; fetch nothing.")
    ] = False,
) -> None:
    """Fetch models, evaluation suites and data of the Hub for machines that cannot reach it, commits pinned.

    Take the folder to such a machine and name it there: --offline-dir DIR, or ZEPHYRCTL_OFFLINE_DIR. Every file is
    compared with its sha256 before it is used. A fetch that broke off goes on when it is run again.

    \b
    zephyrctl fetch --for zephyr-7b/paper --for mt-bench --to bundle
    zephyrctl fetch --for Qwen/Qwen3-0.6B --for hf://HuggingFaceH4/ultrachat_200k --to bundle
    zephyrctl fetch --check bundle
    """
    from zephyrctl.artifacts import bundle as bundles
    from zephyrctl.cli.console import Console
    from zephyrctl.errors import UsageError

    console = Console(session)
    if check is not None:
        if things or to is not None:
            raise UsageError(
                "--check stands alone: it fetches nothing", hint=f"zephyrctl fetch --check {check}"
            )
        found = bundles.check(check, bundles.things(check))
        console(bundles.table(found))
        bundles.require(check, found)
        console.result(str(check), {"path": str(check), "files": _document(found)})
        return
    if not things or to is None:
        raise UsageError(
            "say what to fetch and where to put it", hint="zephyrctl fetch --for zephyr-7b/paper --to bundle"
        )
    found = _fetch(to, things, console, dry_run=dry_run)
    console.result(
        "" if dry_run else str(to), {"path": str(to), "dry_run": dry_run, "files": _document(found)}
    )


def open_offline(
    folder: Path,
    models: Iterable[str | None],
    data: Iterable[str | None],
    emit: Emit,
    cache: HashCache | None = None,
) -> None:
    """Uses the bundle in `folder` for all that follows, once what is named has been looked up there and compared; the
    files are shown as a table.

    `models` and `data` are names as on a command line; those of other places (folders, artifacts, models behind an API)
    are left alone. `cache`, the store's, spares hashing weights twice. Raises RefNotFound where the bundle lacks
    something, IntegrityError where a file is missing or damaged.
    """
    from zephyrctl.artifacts import bundle as bundles

    bundles.use(folder)
    folder = folder.absolute()
    wanted = [one for name in models if name for one in _models(name)]
    wanted += [one for name in data if name for one in _data(name)]
    there = [bundles.look_up(folder, one.kind, one.repo, one.revision) for one in wanted]
    found = bundles.check(folder, there, cache)
    if found:
        emit(bundles.table(found, f"offline, from {folder}"))
    bundles.require(folder, found)


def needed(name: str) -> list[Wanted]:
    """What of the Hub an edition, a suite, a model or a data set needs. Raises UsageError where that is nothing."""
    from zephyrctl.artifacts import bundle_fetch
    from zephyrctl.editions import load
    from zephyrctl.errors import UsageError

    if name in load.names():
        found = _of_edition(load.load(name).sections)
        if not found:
            raise UsageError(f"edition {name} names nothing of the Hub", hint="--for org/name, for a model")
        return found
    if name in bundle_fetch.suite_names():
        return bundle_fetch.suite(name)
    found = _data(name) or _models(name)
    if not found:
        raise UsageError(
            f"'{name}' is no edition, no suite and no name on the Hub",
            hint="editions: "
            + ", ".join(load.names())
            + "; suites: "
            + ", ".join(bundle_fetch.suite_names()),
        )
    return found


def _models(name: str) -> list[Wanted]:
    """The model of the Hub that a name means; none for a folder, an artifact, or a model behind an API."""
    from zephyrctl.artifacts import bundle_fetch
    from zephyrctl.errors import UsageError
    from zephyrctl.modelspec import parse_model

    try:
        spec = parse_model(name)
    except UsageError:
        return []
    return [bundle_fetch.model(spec.name)] if spec.where == "hub" else []


def _data(name: str) -> list[Wanted]:
    """The data set of the Hub that a name means, with or without `=weight`."""
    from zephyrctl.artifacts import bundle_fetch
    from zephyrctl.artifacts.hub import PREFIX, parse_hub

    if not name.startswith(PREFIX) or name.startswith(f"{PREFIX}models/"):
        return []
    found = parse_hub(name.partition("=")[0])
    return [bundle_fetch.data(found.repo, found.revision)]


def _fetch(to: Path, things: list[str], emit: Emit, *, dry_run: bool) -> list[Checked]:
    from zephyrctl.artifacts import bundle as bundles
    from zephyrctl.artifacts import bundle_fetch
    from zephyrctl.artifacts.bundle_hub import HuggingFaceHub

    hub = HuggingFaceHub()
    wanted: list[Wanted] = []
    for one in (one for name in things for one in needed(name)):
        if one not in wanted:
            wanted.append(one)
    planned = bundle_fetch.plan(to, wanted, hub)
    if not dry_run:
        planned = bundle_fetch.fetch(to, planned, hub, emit)
    found = bundles.check(to, planned)
    emit(bundles.table(found, "to fetch" if dry_run else "fetched"))
    return found


def _of_edition(sections: dict[str, dict[str, Any]]) -> list[Wanted]:
    found: list[Wanted] = []
    for section in sections.values():
        for field, value in section.items():
            texts = [
                text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)
            ]
            if field in _MODELS:
                found += [one for text in texts for one in _models(text)]
            elif field in _DATA:
                found += [one for text in texts for one in _data(text)]
    return found


def _document(found: list[Checked]) -> list[dict[str, Any]]:
    return [
        {
            "kind": c.thing.kind, "repo": c.thing.repo, "commit": c.thing.commit, "path": c.file.path,
            "size": c.file.size, "sha256": c.file.sha256, "state": c.state,
        }
        for c in found
    ]  # fmt: skip
