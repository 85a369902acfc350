"""What every stage command does between parsing and printing: settle the config, open the store, run, print the ref."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zephyrctl.cli.console import Console
from zephyrctl.cli.options import AskingOptions, Session, StageOptions
from zephyrctl.config import StageConfig, parse_sets
from zephyrctl.editions.resolve import DEFAULT, SANDBOX, Resolved, named_edition, resolve, said
from zephyrctl.errors import UsageError
from zephyrctl.events import Note
from zephyrctl.project import Project

if TYPE_CHECKING:
    from pathlib import Path

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
    spending: AskingOptions | None = None,
    fallback: str = DEFAULT,
) -> None:
    """Run one stage as its command asks and print the ref it made (or found made).

    `model` is the model the stage starts from or asks: where it belongs to the sandbox, the sandbox's edition is taken
    unless another one was named. The keys of the models in `asked` are checked before anything else. `spending` holds
    the options of a stage that asks models. `fallback` is the edition where none is named.
    """
    console = Console(session)
    if spending is not None:
        flags = flags | _with_shard(spending.flags())
    if not session.showing:
        _check_keys(
            asked, session, replay_only=flags.get("max_usd") == 0 or bool(flags.get("accept_partial"))
        )
    store = open_store(session)
    project = session.project
    if flags.get("shard") is not None:
        store, project = _part(flags["shard"], session, store, dry_run=options.dry_run)
    settled = _settle(
        config_class,
        flags,
        options,
        session,
        sandbox=_is_sandbox(model, store),
        console=console,
        fallback=fallback,
    )
    if session.showing:
        from zephyrctl.cli.settled import show_settled

        show_settled(console, settled)
        return
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
        console.result(result.text, {"dry_run": options.dry_run, **result.plan})
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


def run_training(
    config_class: type[StageConfig],
    run: Run,
    knobs: dict[str, Any],
    *,
    session: Session,
    options: StageOptions,
    offline_dir: Path | None,
) -> None:
    """`run_stage` for `sft` and `dpo`: the models and data of an offline folder are looked up first, and where no
    edition is named it follows from the model and the GPUs."""
    from zephyrctl.cli.settled import choose_for, foreign_folder, start_of

    console, project = Console(session), session.project
    typed = {**knobs, **parse_sets(options.sets or [])}
    known = said(config_class, typed, config_file=options.config, project=project)
    init = known.get("init") if isinstance(known.get("init"), str) else None
    _go_offline(offline_dir, [init], knobs["data"] or [], session, console)
    # An edition named here stands above the project's settings, and so above its model.
    named = named_edition(config_class, options.config, options.edition, Project())
    planned = "lengths" in known
    if "for_hardware" in known and not planned:
        raise UsageError(
            "--for-hardware plans from --lengths alone; with data, it is this machine that is looked at",
            hint="add --lengths FILE.npy --dry-run, or leave --for-hardware away",
        )
    # Nothing but its sizes is asked of a folder without weights that a run is only planned for.
    model = None if named or init is None or (planned and foreign_folder(init)) else init
    fallback = DEFAULT
    if named is None and project.edition is None and not _is_sandbox(model, open_store(session)):
        machines = known.get("num_machines")
        choice = choose_for(
            config_class.stage,
            start_of(init, open_store(session), planned=planned),
            machines=machines if isinstance(machines, int) else 1,
            hardware=str(known["for_hardware"]) if "for_hardware" in known else None,
        )
        fallback = choice.edition
        console(Note(f"settings: edition '{fallback}', because {choice.why} (--edition NAME takes another)"))
    from zephyrctl.training.signals import preparing

    with preparing():
        run_stage(config_class, run, knobs, session=session, options=options, model=model, fallback=fallback)


def _go_offline(
    folder: Path | None, models: list[str | None], data: list[str], session: Session, console: Console
) -> None:
    """Uses the bundle in `folder`, or in the one that the environment names, for all that follows."""
    from zephyrctl.artifacts.bundle import offline_dir

    found = folder or offline_dir()
    if found is not None:
        from zephyrctl.cli.fetch import open_offline

        open_offline(found, models=models, data=data, emit=console, cache=open_store(session).cache)


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
    fallback: str,
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
        fallback=fallback,
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
