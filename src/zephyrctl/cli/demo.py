"""`zephyrctl demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zephyrctl.cli.options import Session, common


@common
def demo_cli(
    *,
    session: Session,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=20, help="Training seeds; 3 give intervals over them.")
    ] = 1,
    fast: Annotated[
        bool, typer.Option("--fast", help="A small run that only shows that everything works.")
    ] = False,
    folder: Annotated[Path, typer.Option("--dir", help="Where the demo keeps its store and models.")] = Path(
        "zephyrctl-demo"
    ),
) -> None:
    """The whole recipe in the sandbox, offline, on a CPU: data, dSFT, AI feedback, dDPO, evaluation, Table 3.

    Makes its own folder. A second run finds everything done.
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.recipes.demo import run_demo

    console = Console(session)
    result = run_demo(session.store or folder / "artifacts", seeds=seeds, fast=fast, emit=console)
    console.result(result.ref, result.document)
