"""Opening the ledger's file.

Durability settings, places that cannot be written, file systems that cannot hold a WAL, and errors people can read.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from zephyrctl.errors import EnvironmentFault, IntegrityError, Locked, ZephyrError, no_space
from zephyrctl.ledger.schema import is_current, migrate

BUSY_SECONDS = 60.0
# Four times the usual: a page that many calls touch, as those of indexes are, is copied to its place less often.
_CHECKPOINT_PAGES = 4000
_HEAD_BYTES = 100
_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "afs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "fuse.sshfs",
    "glusterfs",
}
# What a quota or a limit on the size of files comes back as; only a disk without a free block has a code of its own.
_NO_SPACE = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_SHMSIZE)
_MOUNTS = Path("/proc/self/mountinfo")


def connect(path: Path, *, wal: bool) -> sqlite3.Connection:
    """An open, migrated ledger where a commit is on disk when it returns; usable from one thread at a time.

    Raises IntegrityError, EnvironmentFault or Locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_size(path)
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
    except (sqlite3.Error, OSError) as error:
        raise fault(error, path) from None
    try:
        _set_durable(connection, wal)
        migrate(connection, path)
    except (sqlite3.Error, OSError) as error:
        connection.close()
        raise fault(error, path) from None
    except ZephyrError:
        connection.close()
        raise
    return connection


def open_to_read(path: Path, *, wal: bool) -> sqlite3.Connection:
    """A ledger to be read. Nothing about it is changed, unless its schema is older and it can be written.

    Raises IntegrityError, EnvironmentFault or Locked.
    """
    if _writable(path) and not wal:
        # a WAL that another machine left is put away before this one reads
        return connect(path, wal=wal)
    connection = as_it_is(path)
    try:
        if is_current(connection, path):
            return connection
    except sqlite3.Error as error:
        connection.close()
        raise fault(error, path) from None
    except ZephyrError:
        connection.close()
        raise
    connection.close()
    if not _writable(path):
        raise EnvironmentFault(
            f"the ledger {path} has an older schema, and it cannot be brought up to date where it is: it is read-only",
            hint="copy it to a place that can be written, and name the copy",
        )
    return connect(path, wal=wal)


def as_it_is(path: Path) -> sqlite3.Connection:
    """A database that is there, of any schema, to be read.

    Raises IntegrityError, EnvironmentFault or Locked.
    """
    writable = _writable(path)
    try:
        _check_size(path)
        try:
            # the last one that can write leaves no write-ahead log behind; a reader's would stay
            return _reader(path, "mode=rw" if writable else "mode=ro")
        except sqlite3.OperationalError as error:
            unusable = _code(error) in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
            # What stands in a log or a journal would be missing, or half written.
            if writable or not unusable or any(_beside(path, end).exists() for end in ("-wal", "-journal")):
                raise
            return _reader(path, "mode=ro&immutable=1")
    except (sqlite3.Error, OSError) as error:
        raise fault(error, path) from None


def _reader(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def _check_size(path: Path) -> None:
    # SQLite takes a file of a few bytes for an empty database and would write over it. The file itself is never
    # opened here: closing it would drop the POSIX locks that SQLite holds on it for this process's other
    # connections, and another process could then remove the write-ahead log under them.
    if path.exists() and 0 < path.stat().st_size < _HEAD_BYTES:
        raise _damaged(path, "it is too short for a database")


def _damaged(path: Path, why: object) -> IntegrityError:
    return IntegrityError(
        f"the ledger {path} is damaged ({why})",
        hint="keep the file, put a good copy in its place, or name another with ZEPHYRCTL_LEDGER",
    )


def _set_durable(connection: sqlite3.Connection, wal: bool) -> None:
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    connection.execute("PRAGMA fullfsync = 1")
    if wal and _try_wal(connection):
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    else:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = EXTRA")


def _try_wal(connection: sqlite3.Connection) -> bool:
    # Processes that open a new ledger at once can all ask for WAL; SQLite answers all but one "locked" at once.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return bool(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal")
        except sqlite3.OperationalError as error:
            busy = _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def on_network(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of the network file system under `path`; None for a local one, or where nobody can tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    target = path.resolve()
    best, kind = -1, ""
    for line in lines:
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        mount = Path(fields[4].replace("\\040", " "))
        # The deepest mount wins; of two on one folder, the later one lies on top.
        if target.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), right.split(" ")[0]
    return kind if kind in _NETWORK else None


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def fault(error: Exception, path: Path) -> ZephyrError:
    """A database or system error as one of ours, named by the ledger's path."""
    if isinstance(error, ZephyrError):
        return error
    code = _code(error) if isinstance(error, sqlite3.Error) else 0
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path, error)
    if code == sqlite3.SQLITE_FULL or getattr(error, "sqlite_errorcode", 0) in _NO_SPACE:
        return no_space(path, error)
    if code == sqlite3.SQLITE_IOERR:
        return EnvironmentFault(
            f"the disk under the ledger {path} failed ({error}, {getattr(error, 'sqlite_errorname', '')})",
            hint="see what the system's log says about that disk; then zephyrctl ledger verify checks the file",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Locked(f"the ledger {path} was held by another process for more than {BUSY_SECONDS:.0f} s")
    return EnvironmentFault(
        f"cannot use the ledger {path} ({error})", hint="check that its folder exists and can be written to"
    )
