"""The ledger's tables, as numbered migrations. A ledger is migrated, never deleted and never thrown away.

State of an attempt: inflight → ok | error | timeout | in_doubt | cancelled. `timeout` and `in_doubt` may have
been billed although no reply arrived. Money is kept in millionths of a US dollar (`uusd`). Bodies (`*_z`) are
zlib-compressed bytes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from zephyrctl.errors import EnvironmentFault, IntegrityError

_V1 = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """
    CREATE TABLE request (
        key TEXT PRIMARY KEY, body_z BLOB NOT NULL, provider TEXT NOT NULL, origin TEXT NOT NULL,
        endpoint TEXT NOT NULL, model TEXT NOT NULL, draw INTEGER NOT NULL, created REAL NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE owner (
        id INTEGER PRIMARY KEY, host TEXT NOT NULL, boot_id TEXT NOT NULL, pid INTEGER NOT NULL,
        process_started TEXT NOT NULL, created REAL NOT NULL
    )
    """,
    """
    CREATE TABLE attempt (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL, n INTEGER NOT NULL, run_id TEXT NOT NULL,
        owner INTEGER NOT NULL, state TEXT NOT NULL, started REAL NOT NULL, ended REAL,
        http_status INTEGER, request_id TEXT, error_class TEXT, reserved_uusd INTEGER, cost_uusd INTEGER,
        prompt_tokens INTEGER, completion_tokens INTEGER
    )
    """,
    "CREATE INDEX attempt_key ON attempt (key)",
    "CREATE INDEX attempt_run ON attempt (run_id, state)",
    "CREATE INDEX attempt_inflight ON attempt (owner) WHERE state = 'inflight'",
    """
    CREATE TABLE response (
        key TEXT PRIMARY KEY, body_z BLOB NOT NULL, sha256 TEXT NOT NULL, outcome TEXT NOT NULL,
        finish_reason TEXT NOT NULL, usage TEXT, model_returned TEXT NOT NULL, fingerprint TEXT,
        attempt_id INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE lease (
        key TEXT PRIMARY KEY, run_id TEXT NOT NULL, host TEXT NOT NULL, boot_id TEXT NOT NULL,
        pid INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE spend (
        run_id TEXT PRIMARY KEY, reserved_uusd INTEGER NOT NULL, settled_uusd INTEGER NOT NULL,
        limit_uusd INTEGER
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE batch (
        id TEXT PRIMARY KEY, provider TEXT NOT NULL, state TEXT NOT NULL, keys_hash TEXT NOT NULL
    ) WITHOUT ROWID
    """,
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_V1,)
"""Entry i holds the statements that lead from schema i to schema i + 1."""


def schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema number of an open file, 0 for an empty one.

    Raises IntegrityError for a database that is no ledger.
    """
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not names:
        return 0
    row = None
    if "meta" in names:
        with contextlib.suppress(sqlite3.OperationalError):
            row = connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
    if row is None or not str(row[0]).isdigit():
        raise IntegrityError(
            f"{path} is a database, but not a zephyrctl ledger", hint="give another place for the ledger"
        )
    return int(row[0])


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring an open ledger to the newest schema, in one transaction.

    An older one is copied to `<name>.v<N>.bak` first.

    Raises EnvironmentFault when the ledger was made by a newer zephyrctl.
    """
    newest = len(MIGRATIONS)
    found = schema_version(connection, path)
    if found > newest:
        raise EnvironmentFault(
            f"{path} was made by a newer zephyrctl (ledger schema {found}, this version knows {newest})",
            hint="pip install --upgrade zephyrctl",
        )
    if found == newest:
        return
    if found:
        backup = path.with_name(f"{path.name}.v{found}.bak")
        if not backup.exists():
            connection.execute("VACUUM INTO ?", (str(backup),))
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statements in MIGRATIONS[schema_version(connection, path) :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('schema_version', ?)", (str(newest),))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
