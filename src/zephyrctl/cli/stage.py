"""What every stage command does between parsing and printing: settle the config, open the store, run, print the ref."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyrctl.cli.console import Console
from zephyrctl.cli.options import Session, StageOptions
from zephyrctl.config import StageConfig, parse_sets
from zephyrctl.editions.resolve import SANDBOX, Resolved, resolve
from zephyrctl.errors import UsageError
from zephyrctl.events import Note

if TYPE_CHECKING:
    from zephyrctl.artifacts.step import StepResult, Work
    from zephyrctl.artifacts.store import Store

Run = Callable[[Any, "Work"], "StepResult"]


def run_stage(
    config_class: type[StageConfig],
    run: Run,
    flags: dict[str, Any],
    *,
    session: Session,
    options: StageOptions,
    model: str | None = None,
    asked: Sequence[str | None] = (),
) -> None:
    """Run one stage as its command asks and print the ref it made (or found made).

    `model` is the model the stage starts from or asks: where it belongs to the sandbox, the sandbox's edition is taken
    unless another one was named. The keys of the models in `asked` are checked before anything else.
    """
    console = Console(session)
    _check_keys(asked)
    store = open_store(session)
    settled = _settle(config_class, flags, options, sandbox=_is_sandbox(model, store), console=console)
    from zephyrctl.artifacts.step import Work

    work = Work(
        store=store, emit=console, again=options.again, dry_run=options.dry_run, edition=settled.label
    )
    result = run(settled.config, work)
    if result.artifact is None:
        console.result("", {"dry_run": True})
        return
    artifact = result.artifact
    console.result(
        str(artifact.ref),
        {
            "ref": str(artifact.ref),
            "kind": artifact.kind,
            "already": result.already,
            "path": str(artifact.path),
            "content_digest": artifact.digest,
            "counts": artifact.manifest.counts,
            "headline": artifact.manifest.headline,
            "sides": result.sides,
        },
    )


def open_store(session: Session) -> Store:
    """The store that the session names, made on first use."""
    from zephyrctl.artifacts.store import Store

    return Store.open(session.store_root, ledger=session.ledger)


def _check_keys(asked: Sequence[str | None]) -> None:
    """Raises AuthError where a model in `asked` wants a key that is not set; names that cannot be read come later."""
    from zephyrctl.modelspec import parse_model
    from zephyrctl.providers.registry import check_key

    for name in asked:
        if name:
            with contextlib.suppress(UsageError):
                check_key(parse_model(name))


def _settle(
    config_class: type[StageConfig],
    flags: dict[str, Any],
    options: StageOptions,
    *,
    sandbox: bool,
    console: Console,
) -> Resolved:
    typed = {
        **flags,
        "seed": options.seed,
        "out": options.out,
        "note": options.note,
        **parse_sets(options.sets or []),
    }
    settled = resolve(
        config_class,
        typed,
        config_file=options.config,
        edition=options.edition,
        project_file=Path("zephyrctl.yaml"),
        sandbox=sandbox,
    )
    if sandbox and settled.edition == SANDBOX and options.edition is None:
        console(
            Note(
                "settings: edition 'sandbox', because the model is the sandbox's (--edition NAME takes another)"
            )
        )
    return settled


def _is_sandbox(model: str | None, store: Store) -> bool:
    if model is None:
        return False
    from zephyrctl.modelspec import parse_model

    spec = parse_model(model)
    if spec.where == "sandbox":
        return True
    if spec.where not in ("folder", "artifact"):
        return False
    from zephyrctl.training.locate import locate_model

    return locate_model(store, spec).world == "sandbox"
