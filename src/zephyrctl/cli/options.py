"""The options that commands share, declared once, and the session they make together.

`--store`, `--debug`, `--no-color`, `--json` and `--quiet` are accepted before and after every command: the
decorators below add them to a command's signature and merge what was given on either side.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from zephyrctl.project import Project

Command = Callable[..., None]

_COMMON: dict[str, Any] = {
    "store": Annotated[
        Path | None,
        typer.Option(
            "--store", help="Folder of the artifact store.  [env: ZEPHYRCTL_STORE; default: ./artifacts]"
        ),
    ],
    "json_": Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, also on failure.")
    ],
    "quiet": Annotated[
        bool, typer.Option("--quiet", "-q", help="Nothing on stderr but warnings and errors.")
    ],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
    "no_color": Annotated[bool, typer.Option("--no-color", help="No colour.  [env: NO_COLOR]")],
}

_STAGE: dict[str, Any] = {
    "seed": Annotated[int | None, typer.Option("--seed", help="Seeds every random choice.")],
    "out": Annotated[str | None, typer.Option("--out", help="Name of the artifact to make.")],
    "edition": Annotated[
        str | None,
        typer.Option("--edition", help="Frozen settings to start from: zephyr-7b/paper, sandbox, …"),
    ],
    "config": Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")],
    "sets": Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any field of the stage; repeatable."),
    ],
    "note": Annotated[str | None, typer.Option("--note", help="A sentence to keep in the manifest.")],
    "dry_run": Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; do and write nothing.")
    ],
    "again": Annotated[
        bool, typer.Option("--again", help="Make it anew; replies already paid are replayed.")
    ],
}


@dataclass
class Session:
    """What the shared options say, from both sides of the command."""

    store: Path | None = None
    json_: bool = False
    quiet: bool = False
    debug: bool = False
    no_color: bool = False
    showing: bool = False
    """`config show`: settings are printed and nothing is run."""

    def merge(self, given: dict[str, Any]) -> None:
        """Take over what was given; a later `--store` wins, a flag once set stays set."""
        self.store = given["store"] or self.store
        for flag in ("json_", "quiet", "debug", "no_color"):
            setattr(self, flag, getattr(self, flag) or given[flag])

    @property
    def store_root(self) -> Path:
        """The store's folder: `--store`, else ZEPHYRCTL_STORE, else the project file's `store`, else ./artifacts."""
        if self.store is not None:
            return self.store
        named = os.environ.get("ZEPHYRCTL_STORE") or self.project.store
        return Path(named or "artifacts")

    @functools.cached_property
    def project(self) -> Project:
        """The project file and the user's own file; read once."""
        from zephyrctl.project import load_project

        return load_project()

    @property
    def ledger(self) -> Path | None:
        """Where ZEPHYRCTL_LEDGER moves the ledger to; None = inside the store."""
        place = os.environ.get("ZEPHYRCTL_LEDGER")
        return Path(place) if place else None


_ASKING: dict[str, Any] = {
    "concurrency": Annotated[
        int | None,
        typer.Option("--concurrency", min=1, help="Calls in flight at most; below it the number adapts."),
    ],
    "max_usd": Annotated[
        float | None,
        typer.Option(
            "--max-usd", min=0, help="Spend at most so many US dollars; 0 = replay the ledger only."
        ),
    ],
    "yes": Annotated[bool, typer.Option("--yes", "-y", help="Agree to the estimate.")],
    "price": Annotated[
        str | None,
        typer.Option("--price", metavar="in=…,out=…", help="US dollars per million tokens, where not known."),
    ],
    "pilot": Annotated[
        int | None, typer.Option("--pilot", min=2, help="Pay for N rows, tell what all would cost, stop.")
    ],
    "mode": Annotated[
        str | None, typer.Option("--mode", help="online, batch (half price, up to a day) or auto.")
    ],
    "shard": Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Work on one part of N; auto reads Slurm's array."),
    ],
    "accept_partial": Annotated[
        bool, typer.Option("--accept-partial", help="Close the artifact from what is paid; asks nothing.")
    ],
}
_IN_PARTS = ("pilot", "shard", "accept_partial")


@dataclass(frozen=True)
class AskingOptions:
    """The options of the stages that ask models, as typed."""

    concurrency: int | None = None
    max_usd: float | None = None
    yes: bool = False
    price: str | None = None
    pilot: int | None = None
    mode: str | None = None
    shard: str | None = None
    accept_partial: bool = False

    def flags(self) -> dict[str, Any]:
        """The options that are fields of the stage's config; None = not said."""
        flags = {
            name: getattr(self, name)
            for name in ("concurrency", "max_usd", "price", "pilot", "mode", "shard")
        }
        return flags | {"accept_partial": self.accept_partial or None}


@dataclass(frozen=True)
class StageOptions:
    """The options that every stage takes, as typed."""

    seed: int | None = None
    out: str | None = None
    edition: str | None = None
    config: Path | None = None
    sets: list[str] | None = field(default=None)
    note: str | None = None
    dry_run: bool = False
    again: bool = False


def common(command: Command) -> Command:
    """The command with the shared options added; what they say arrives as `session: Session`."""

    @functools.wraps(command)
    def wrapper(ctx: typer.Context, *args: Any, **kwargs: Any) -> None:
        session = ctx.ensure_object(Session)
        session.merge({name: kwargs.pop(name) for name in _COMMON})
        command(*args, session=session, **kwargs)

    return with_parameters(wrapper, command, {"ctx": typer.Context, **_COMMON}, "session")


def stage(command: Command) -> Command:
    """The command with the shared options and those of every stage, which arrive as `options: StageOptions`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        options = StageOptions(**{name: kwargs.pop(name) for name in _STAGE})
        command(*args, options=options, **kwargs)

    return common(with_parameters(wrapper, command, _STAGE, "options"))


def asking(command: Command) -> Command:
    """The command with the options of `stage` and those of stages that ask models, which arrive as `spending`."""
    return _asking(command, _ASKING)


def asking_whole(command: Command) -> Command:
    """`asking` for a stage whose work is one piece: no pilot, no parts, no partial result."""
    return _asking(command, {name: _ASKING[name] for name in _ASKING if name not in _IN_PARTS})


def _asking(command: Command, names: dict[str, Any]) -> Command:
    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        spending = AskingOptions(**{name: kwargs.pop(name) for name in names})
        command(*args, spending=spending, **kwargs)

    return stage(with_parameters(wrapper, command, names, "spending"))


def with_parameters(wrapper: Command, command: Command, extra: dict[str, Any], *drop: str) -> Command:
    """`wrapper` with the parameters of `command` and the `extra` ones (name to annotation); those in `drop` are made
    inside."""
    signature = inspect.signature(command, eval_str=True)
    own = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, p in signature.parameters.items()
        if name not in drop
    ]
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=_default(annotation), annotation=annotation
        )
        for name, annotation in extra.items()
    ]
    parameters = [*own, *added]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return wrapper


def _default(annotation: Any) -> Any:
    if annotation is typer.Context:
        return inspect.Parameter.empty
    return False if annotation.__origin__ is bool else None
