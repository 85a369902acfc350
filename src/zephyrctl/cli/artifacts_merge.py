"""`zephyrctl artifacts merge`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from zephyrctl.cli.options import Session, common

if TYPE_CHECKING:
    from zephyrctl.artifacts.artifact import Artifact
    from zephyrctl.artifacts.step import StepResult, Work
    from zephyrctl.artifacts.store import Store


@common
def merge_cli(
    refs: Annotated[
        list[str],
        typer.Argument(
            metavar="REF…", help="What to merge: refs, or names with * in quotes (newest versions)."
        ),
    ],
    *,
    session: Session,
    out: Annotated[
        str | None,
        typer.Option("--out", help="Name of the artifact to make.  [parts: the name without its part]"),
    ] = None,
    note: Annotated[str | None, typer.Option("--note", help="A sentence to keep in the manifest.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Make it anew.")] = False,
) -> None:
    """Make one version of the parts of a sharded step, or of several versions of one kind.

    The parts (all that gen-sft or gen-prefs made with --shard i/n) become what one process would have made: the same
    bytes, the same content digest. Other versions are put one after the other in the order given; a row that is there
    already is dropped and counted.

    \b
    zephyrctl artifacts merge 'sft-data.shard-*-of-8'
    zephyrctl artifacts merge feedback@v1 feedback@v3 --out feedback-both
    """
    from zephyrctl.artifacts.step import Work
    from zephyrctl.cli.console import Console
    from zephyrctl.cli.stage import open_store

    console, store = Console(session), open_store(session)
    found = _resolved(store, refs)
    result = _merged(found, Work(store, console, again=again, project=session.project), out, note)
    assert result.artifact is not None
    console.result(
        str(result.ref),
        {
            "ref": result.ref,
            "kind": result.artifact.kind,
            "already": result.already,
            "path": str(result.artifact.path),
            "content_digest": result.artifact.digest,
            "counts": result.artifact.manifest.counts,
            "merged": [str(artifact.ref) for artifact in found],
        },
    )


def _merged(found: Sequence[Artifact], work: Work, out: str | None, note: str | None) -> StepResult:
    from zephyrctl.artifacts.merge import join
    from zephyrctl.artifacts.parts import is_part
    from zephyrctl.errors import UsageError

    whole = [str(artifact.ref) for artifact in found if not is_part(artifact)]
    if len(whole) == len(found):
        if out is None:
            raise UsageError("what is the merged artifact to be called?", hint="--out NAME")
        return join(work, found, out=out, note=note)
    if whole:
        raise UsageError(f"{', '.join(whole)}: no part of a sharded step", hint="merge parts with parts only")
    stage = found[0].manifest.stage
    if stage == "gen-sft":
        from zephyrctl.stages.gen_sft.merge import merge

        return merge(found, work, out=out, note=note)
    if stage == "gen-prefs":
        from zephyrctl.stages.gen_prefs.merge import merge

        return merge(found, work, out=out, note=note)
    raise UsageError(f"{found[0].ref}: parts of {stage} cannot be merged")


def _resolved(store: Store, refs: Sequence[str]) -> list[Artifact]:
    from fnmatch import fnmatchcase

    from zephyrctl.errors import RefNotFound

    found = []
    for text in refs:
        names = [name for name in store.names() if fnmatchcase(name, text)] if "*" in text else [text]
        if not names:
            raise RefNotFound(f"no artifact is called {text}", hint="zephyrctl artifacts ls")
        found += [store.resolve(name) for name in names]
    return found
