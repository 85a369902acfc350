"""The ledger that a command reads or writes, and the file it is given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zephyrctl.cli.options import Session

if TYPE_CHECKING:
    from zephyrctl.artifacts.store import Store
    from zephyrctl.ledger.ledger import Ledger


@contextlib.contextmanager
def existing(session: Session) -> Iterator[tuple[Store, Ledger]]:
    """The store and its ledger. Raises RefNotFound where there is none yet."""
    from zephyrctl.cli.stage import open_store
    from zephyrctl.errors import RefNotFound
    from zephyrctl.ledger.ledger import Ledger

    store = open_store(session)
    if not store.ledger_path.is_file():
        raise RefNotFound(
            f"there is no ledger at {store.ledger_path}",
            hint="--store DIR or ZEPHYRCTL_LEDGER says where it is; the first paid call makes it",
        )
    with Ledger.open(store.ledger_path) as ledger:
        yield store, ledger


@contextlib.contextmanager
def writable(session: Session) -> Iterator[Ledger]:
    """The store's ledger, which the first write makes."""
    from zephyrctl.cli.stage import open_store
    from zephyrctl.ledger.ledger import Ledger

    store = open_store(session)
    store.prepare()
    with Ledger.open(store.ledger_path) as ledger:
        yield ledger


@contextlib.contextmanager
def spooled(file: Path) -> Iterator[tuple[Path, str]]:
    """The file to read, which is read twice: what comes on stdin is kept in a temporary file meanwhile."""
    import shutil
    import sys
    import tempfile

    if str(file) != "-":
        yield file, str(file)
        return
    with tempfile.NamedTemporaryFile(prefix="zephyrctl-", suffix=".jsonl") as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool, 1 << 20)
        spool.flush()
        yield Path(spool.name), "stdin"
