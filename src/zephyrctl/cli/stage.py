"""What every stage command does between parsing and printing: settle the config, open the store, run, print the ref."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zephyrctl.cli.console import Console
from zephyrctl.cli.options import AskingOptions, Session, StageOptions
from zephyrctl.config import StageConfig, parse_sets
from zephyrctl.editions.resolve import SANDBOX, Resolved, resolve
from zephyrctl.errors import UsageError
from zephyrctl.events import Note

if TYPE_CHECKING:
    from zephyrctl.artifacts.step import StepResult, Work
    from zephyrctl.artifacts.store import Store
    from zephyrctl.project import Project

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
    spending: AskingOptions | None = None,
) -> None:
    """Run one stage as its command asks and print the ref it made (or found made).

    `model` is the model the stage starts from or asks: where it belongs to the sandbox, the sandbox's edition is taken
    unless another one was named. The keys of the models in `asked` are checked before anything else. `spending` holds
    the options of a stage that asks models.
    """
    console = Console(session)
    if spending is not None:
        flags = flags | _with_shard(spending.flags())
    _check_keys(asked, session, replay_only=flags.get("max_usd") == 0 or bool(flags.get("accept_partial")))
    store = open_store(session)
    project = session.project
    if flags.get("shard") is not None:
        store, project = _part(flags["shard"], session, store, dry_run=options.dry_run)
    settled = _settle(
        config_class, flags, options, session, sandbox=_is_sandbox(model, store), console=console
    )
    from zephyrctl.artifacts.step import Work

    work = Work(
        store=store,
        emit=console,
        again=options.again,
        dry_run=options.dry_run,
        edition=settled.label,
        project=project,
        yes=spending is not None and spending.yes,
        ask=console.asking(),
    )
    result = run(settled.config, work)
    if result.artifact is None:
        console.result("", {"dry_run": options.dry_run, **result.plan})
        return
    artifact = result.artifact
    if result.already:
        console(Note(f"{artifact.ref} is there already; nothing was asked or made (--again makes it anew)"))
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


def _part(text: str, session: Session, whole: Store, *, dry_run: bool) -> tuple[Store, Project]:
    """The store with the ledger of one part, and the project with what the whole ledger leaves of its limit.

    The part's ledger begins with the replies that the store's ledger holds, so that they are not paid again.
    """
    from zephyrctl.artifacts.store import Store
    from zephyrctl.asking.shards import Shard
    from zephyrctl.money import UUSD

    shard, project = Shard.parse(text), session.project
    if not dry_run:
        whole.prepare()
        spent = shard.begin(whole.ledger_path)
        if project.max_usd is not None:
            project = project.model_copy(update={"max_usd": max(0.0, project.max_usd - spent / UUSD)})
    return Store.open(session.store_root, ledger=shard.ledger_path(whole.ledger_path)), project


def _with_shard(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags with `auto` replaced by the part that the job array gives this process."""
    if flags["shard"] is None:
        return flags
    from zephyrctl.asking.shards import Shard

    return flags | {"shard": str(Shard.parse(flags["shard"]))}


def _check_keys(asked: Sequence[str | None], session: Session, *, replay_only: bool) -> None:
    """Raises AuthError where a model in `asked` wants a key that is not set; names that cannot be read come later."""
    from zephyrctl.modelspec import parse_model
    from zephyrctl.providers.registry import check_key
    from zephyrctl.providers.site import Site

    for name in asked:
        if name:
            with contextlib.suppress(UsageError):
                check_key(parse_model(name), Site(project=session.project, replay_only=replay_only))


def _settle(
    config_class: type[StageConfig],
    flags: dict[str, Any],
    options: StageOptions,
    session: Session,
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
        project=session.project,
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
