"""The ledger's tables, as numbered migrations. A ledger is migrated, never deleted and never thrown away.

State of an attempt: inflight or batched → ok | error | timeout | in_doubt | cancelled. `timeout` and `in_doubt`
may have been billed although no reply arrived. Money is kept in millionths of a US dollar (`uusd`). Bodies
(`*_z`) are zlib-compressed bytes. `usage` is a JSON list: prompt, completion and, from schema 2 on, cached,
cache-write and reasoning tokens.
"""

from __future__ import annotations

import contextlib
import os
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

_V2 = (
    # Large rows in the order of their keys touch a page each; in the order of their arrival they share pages.
    """
    CREATE TABLE request_2 (
        key TEXT PRIMARY KEY, body_z BLOB NOT NULL, provider TEXT NOT NULL, origin TEXT NOT NULL,
        endpoint TEXT NOT NULL, model TEXT NOT NULL, draw INTEGER NOT NULL, created REAL NOT NULL
    )
    """,
    "INSERT INTO request_2 SELECT * FROM request ORDER BY created",
    "DROP TABLE request",
    "ALTER TABLE request_2 RENAME TO request",
    """
    CREATE TABLE response_2 (
        key TEXT PRIMARY KEY, body_z BLOB NOT NULL, sha256 TEXT NOT NULL, outcome TEXT NOT NULL,
        finish_reason TEXT NOT NULL, usage TEXT, model_returned TEXT NOT NULL, fingerprint TEXT,
        attempt_id INTEGER NOT NULL
    )
    """,
    "INSERT INTO response_2 SELECT * FROM response ORDER BY attempt_id",
    "DROP TABLE response",
    "ALTER TABLE response_2 RENAME TO response",
    "ALTER TABLE attempt ADD COLUMN cached_tokens INTEGER",
    "ALTER TABLE attempt ADD COLUMN cache_write_tokens INTEGER",
    "ALTER TABLE attempt ADD COLUMN reasoning_tokens INTEGER",
    "ALTER TABLE attempt ADD COLUMN batch TEXT",
    # The state left the index of runs: it changes with every call, the run of an attempt never does.
    "DROP INDEX attempt_run",
    "CREATE INDEX attempt_run ON attempt (run_id)",
    "CREATE INDEX attempt_doubt ON attempt (run_id) WHERE state IN ('in_doubt', 'timeout')",
    "CREATE INDEX attempt_batch ON attempt (batch) WHERE batch IS NOT NULL",
    "DROP INDEX attempt_inflight",
    # It grows while its process lives, for those who watch from another machine.
    "ALTER TABLE owner ADD COLUMN beat INTEGER NOT NULL DEFAULT 0",
    # Schema 1 had these three and wrote nothing into them.
    "DROP TABLE lease",
    "DROP TABLE spend",
    "DROP TABLE batch",
    # One row for each open attempt: its request is being asked, by a process or by a batch.
    """
    CREATE TABLE lease (
        key TEXT PRIMARY KEY, attempt INTEGER NOT NULL, owner INTEGER, batch TEXT,
        CHECK ((owner IS NULL) <> (batch IS NULL))
    ) WITHOUT ROWID
    """,
    # scope: `all`, or `run:` and the run's id; always the sums over the attempts
    """
    CREATE TABLE spend (
        scope TEXT PRIMARY KEY, settled_uusd INTEGER NOT NULL, reserved_uusd INTEGER NOT NULL,
        doubt_uusd INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE run (
        id TEXT PRIMARY KEY, stage TEXT NOT NULL, name TEXT NOT NULL, created REAL NOT NULL
    ) WITHOUT ROWID
    """,
    # the requests whose replies a run needs, paid for by it or by another
    "CREATE TABLE used (run_id TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (run_id, key)) WITHOUT ROWID",
    """
    CREATE TABLE batch (
        id TEXT PRIMARY KEY, provider TEXT NOT NULL, origin TEXT NOT NULL, model TEXT NOT NULL,
        run_id TEXT NOT NULL, state TEXT NOT NULL, remote_id TEXT, keys_hash TEXT NOT NULL,
        created REAL NOT NULL
    ) WITHOUT ROWID
    """,
    "INSERT INTO run SELECT run_id, '', '', MIN(started) FROM attempt GROUP BY run_id",
    "INSERT INTO used SELECT DISTINCT run_id, key FROM attempt WHERE state = 'ok'",
    # Schema 1 knew no leases: of several attempts in flight for one request, the newest keeps it.
    "INSERT INTO lease SELECT key, MAX(id), owner, NULL FROM attempt WHERE state = 'inflight' GROUP BY key",
    """
    UPDATE attempt SET state = 'in_doubt', ended = started
    WHERE state = 'inflight' AND id NOT IN (SELECT attempt FROM lease)
    """,
    """
    INSERT INTO spend
    WITH one AS (
        SELECT run_id,
               CASE WHEN state = 'ok' THEN COALESCE(cost_uusd, 0) ELSE 0 END AS settled,
               CASE WHEN state = 'inflight' THEN COALESCE(reserved_uusd, 0) ELSE 0 END AS reserved,
               CASE WHEN state IN ('timeout', 'in_doubt') THEN COALESCE(reserved_uusd, 0) ELSE 0 END AS doubt
        FROM attempt
    )
    SELECT 'run:' || run_id, SUM(settled), SUM(reserved), SUM(doubt) FROM one GROUP BY run_id
    UNION ALL SELECT 'all', SUM(settled), SUM(reserved), SUM(doubt) FROM one HAVING COUNT(*)
    """,
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_V1, _V2)
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


def is_current(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether an open ledger has the newest schema; False for an older one and for an empty file.

    Raises EnvironmentFault for one that was made by a newer zephyrctl, IntegrityError for no ledger.
    """
    newest = len(MIGRATIONS)
    found = schema_version(connection, path)
    if found > newest:
        raise EnvironmentFault(
            f"{path} was made by a newer zephyrctl (ledger schema {found}, this version knows {newest})",
            hint="pip install --upgrade zephyrctl",
        )
    return found == newest


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring an open ledger to the newest schema, in one transaction.

    An older one is copied to `<name>.v<N>.bak` first.

    Raises EnvironmentFault when the ledger was made by a newer zephyrctl, or its copy cannot be written.
    """
    if is_current(connection, path):
        return
    newest = len(MIGRATIONS)
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have been faster; while the write lock is held nobody else copies or migrates.
        found = schema_version(connection, path)
        if 0 < found < newest:
            _back_up(path, found)
        if found < newest:
            for statements in MIGRATIONS[found:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('schema_version', ?)", (str(newest),))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _back_up(path: Path, version: int) -> None:
    """A copy under its last name only when it is whole and on disk: a crash leaves none, or all of it."""
    backup = path.with_name(f"{path.name}.v{version}.bak")
    if backup.exists():
        return
    unfinished = backup.with_name(f"{backup.name}.tmp")
    unfinished.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("VACUUM INTO ?", (str(unfinished),))
    _flush(unfinished)
    unfinished.replace(backup)
    _flush(backup.parent)


def _flush(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
