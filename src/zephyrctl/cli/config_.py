"""`zephyrctl config show`: every setting with the place that decided it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from zephyrctl.cli import binarize, dpo, eval_, gen_prefs, gen_sft, sft
from zephyrctl.cli.options import Session, common
from zephyrctl.cli.settled import shown

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Settings: what they are, and which place decided them.",
)
show_app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="Show the settings of a stage, given its own options, and where each comes from; nothing is run.\n\n"
    "The order is: command line, --config, --edition, zephyrctl.yaml, the edition chosen for the model.\n\n"
    "Without a stage: the places and limits of the project.",
)
app.add_typer(show_app, name="show")


@app.callback()
@common
def config_cli(*, session: Session) -> None:
    """Takes the shared options where they stand before the verb."""


@common
def _begin(*, session: Session) -> None:
    session.showing = True


@show_app.callback()
@functools.wraps(_begin)
def show_cli(ctx: typer.Context, **given: Any) -> None:
    """Takes the shared options, and shows the project's settings where no stage follows."""
    _begin(ctx=ctx, **given)
    if ctx.invoked_subcommand is None:
        _show_places(ctx.ensure_object(Session))


def _add(name: str, command: Callable[..., None]) -> None:
    show_app.command(
        name,
        short_help=f"The settings of {name} and where each comes from.",
        help=f"Show the settings that the same options would give {name}, and where each comes from; nothing is run.",
    )(command)


for _name, _command in (
    ("gen-sft", gen_sft.gen_sft_cli),
    ("sft", sft.sft_cli),
    ("gen-prefs", gen_prefs.gen_prefs_cli),
    ("binarize", binarize.binarize_cli),
    ("dpo", dpo.dpo_cli),
    ("eval", eval_.eval_cli),
):
    _add(_name, _command)


_LIMITS = ("edition", "suites", "max_usd", "concurrency", "rpm", "tpm")


def _show_places(session: Session) -> None:
    from zephyrctl.cli.console import Console, plain_table

    found = _places(session)
    rows = tuple((name, shown(value), origin) for name, (value, origin) in found.items())
    document = {name: {"value": value, "from": origin} for name, (value, origin) in found.items()}
    Console(session).result(plain_table(("setting", "value", "from"), rows), document)


def _places(session: Session) -> dict[str, tuple[Any, str]]:
    """Places, limits and stage settings of the project: value and origin."""
    project = session.project
    of_project = _named_in(Path(project.origin))

    def file_of(name: str) -> str:
        from zephyrctl.project import user_file

        return project.origin if name in of_project else str(user_file())

    found: dict[str, tuple[Any, str]] = {}
    if session.store is not None:
        store_from = "--store"
    elif os.environ.get("ZEPHYRCTL_STORE"):
        store_from = "ZEPHYRCTL_STORE"
    else:
        store_from = file_of("store") if project.store else "default"
    found["store"] = str(session.store_root), store_from
    ledger = session.ledger or session.store_root / "ledger.sqlite"
    found["ledger"] = str(ledger), "ZEPHYRCTL_LEDGER" if session.ledger else "the store"
    for name in _LIMITS:
        value = getattr(project, name)
        by_environment = name == "max_usd" and os.environ.get("ZEPHYRCTL_MAX_USD")
        found[name] = (
            value,
            "default" if value is None else "ZEPHYRCTL_MAX_USD" if by_environment else file_of(name),
        )
    for name, endpoint in project.endpoints.items():
        found[f"endpoints.{name}"] = endpoint.base_url, file_of("endpoints")
    for stage, section in project.stages.items():
        for key, value in section.items():
            found[f"{stage}.{key}"] = value, project.origin
    return found


def _named_in(path: Path) -> set[str]:
    from zephyrctl.config import load_yaml

    return set(load_yaml(path)) if path.is_file() else set()
