"""Every call that changes the disk goes through here, so that a test can make any one of them fail or die.

The order that makes a commit safe is kept by the callers; this module keeps each step honest: new files are
made with O_EXCL, a short write is continued, an error of fsync is never retried as if it had worked.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from zephyrctl.errors import EnvironmentFault, no_space

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
_BUFFER = 1 << 20


class Calls:
    """The system calls that change the disk. Tests put a subclass in `durable.calls`."""

    def open_new(self, path: str) -> int:
        return os.open(path, _NEW, 0o644)

    def write(self, handle: int, data: bytes | memoryview) -> int:
        return os.write(handle, data)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)  # noqa: PTH101

    def mkdir(self, path: str) -> None:
        os.mkdir(path)  # noqa: PTH102

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)  # noqa: PTH104

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def symlink(self, target: str, link: str) -> None:
        os.symlink(target, link)  # noqa: PTH211

    def unlink(self, path: str) -> None:
        os.unlink(path)  # noqa: PTH108

    def rmdir(self, path: str) -> None:
        os.rmdir(path)  # noqa: PTH106


calls = Calls()


@contextlib.contextmanager
def faults(path: Path) -> Iterator[None]:
    """Turns the disk's own errors while writing below `path` into errors for people (exit code 3)."""
    try:
        yield
    except OSError as error:
        raise fault(error, path) from error


def fault(error: OSError, path: Path) -> Exception:
    """The error to raise for `error` met while writing below `path`;

    `error` itself where it says nothing of the disk.
    """
    where = error.filename if isinstance(error.filename, str) else path
    if error.errno in _FULL:
        return no_space(where, error.strerror)
    if error.errno in _FORBIDDEN:
        return EnvironmentFault(
            f"cannot write {where}: {error.strerror}",
            hint="give yourself write access there, or point --store to a folder of your own",
        )
    if error.errno == errno.EIO:
        return EnvironmentFault(
            f"the disk failed while writing {where} ({error.strerror}); nothing was committed",
            hint="look at the disk, then run the same command again",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return EnvironmentFault(
            f"too many open files at {where}", hint="raise the limit (ulimit -n), then run it again"
        )
    return error


class NewFile:
    """A file being written: made exclusively, hashed as it is written, synced when closed.

    A sink for Parquet writers too. After `close()`, `size` (bytes) and `sha256` (hex) tell what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.closed = False
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        self._error: OSError | None = None
        self._handle = calls.open_new(os.fspath(path))

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        if self.closed:
            # a Parquet writer that is thrown away still writes its footer into the file that was given up
            return len(view)
        self._buffer += view
        self.size += len(view)
        if len(self._buffer) >= _BUFFER:
            self._drain()
        return len(view)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """Nothing: bytes go out when the buffer is full and when the file is closed."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        if self._error is not None:
            raise self._error
        if self.closed:
            return
        try:
            self._drain()
            calls.fsync(self._handle)
        except OSError as error:
            # what failed once stays failed: the next fsync may say all is well, and the bytes are lost
            self._error = error
            raise
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Lets go of the file without a promise that its bytes are on the disk."""
        if not self.closed:
            self.closed = True
            os.close(self._handle)

    def _drain(self) -> None:
        data = bytes(self._buffer)
        self._buffer.clear()
        self._hash.update(data)
        view = memoryview(data)
        try:
            while view:
                view = view[calls.write(self._handle, view) :]
        except OSError as error:
            self._error = error
            raise


def write_new(path: Path, data: bytes) -> NewFile:
    """The closed, synced file that now holds `data`. Raises FileExistsError when something is there."""
    file = NewFile(path)
    try:
        file.write(data)
        file.close()
    finally:
        file.abandon()
    return file


def replace(path: Path, data: bytes) -> None:
    """Puts `data` at `path` in one step: readers see the old bytes or the new ones, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        write_new(temporary, data)
        rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            calls.unlink(os.fspath(temporary))
        raise
    sync_dir(path.parent)


def rename(source: Path, target: Path) -> None:
    """Renames; onto an existing file it replaces it, onto a filled folder it raises OSError."""
    calls.rename(os.fspath(source), os.fspath(target))


def make_dir(path: Path) -> None:
    """A folder at `path` and its parents; each one that is new is made durable in its parent."""
    if path.is_dir():
        return
    if path.parent != path:
        make_dir(path.parent)
    try:
        calls.mkdir(os.fspath(path))
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        calls.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Makes the bytes of a file durable, whoever wrote them."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        calls.fsync(handle)
    finally:
        os.close(handle)


def sync_dirs(top: Path) -> None:
    """Makes all folders under `top` durable, the deepest first, `top` itself last."""
    for folder, _, _ in os.walk(top, topdown=False):
        sync_dir(Path(folder))


def read_only(path: Path) -> None:
    """Takes the write permission off a file."""
    calls.chmod(os.fspath(path), 0o444)


def remove_tree(path: Path, *, last: str | None = None) -> None:
    """Removes a folder with all it holds; the file `last` at its top goes just before the folder itself.

    Links are removed, never followed. A folder that gained something meanwhile is left.
    """
    try:
        names = sorted(os.listdir(path))  # noqa: PTH208
    except FileNotFoundError:
        return
    for name in names:
        if name == last:
            continue
        child = path / name
        if stat.S_ISDIR(os.lstat(child).st_mode):
            remove_tree(child)
        else:
            calls.unlink(os.fspath(child))
    if last in names:
        calls.unlink(os.fspath(path / str(last)))
    try:
        calls.rmdir(os.fspath(path))
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
