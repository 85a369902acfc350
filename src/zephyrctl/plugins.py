"""Parts that come from outside: a function in the user's own file, or an entry point of an installed package.

Only what the user named is loaded and run, and only that one part. The search path is left as it is, so a file
can import what is installed and nothing that merely lies beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.abc
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from zephyrctl.errors import RefNotFound, UsageError

JUDGES = "zephyrctl.judges"
"""The group of entry points under which packages offer functions that score completions."""

_FORM = "./file.py:function"


@dataclass(frozen=True)
class Loaded:
    """A function from outside. `digest` stands for the code it was loaded from (`sha256:…` of its file, and
    of its package's version where it has one), `label` is what rows and manifests call it."""

    function: Callable[..., Any]
    digest: str
    label: str
    path: Path

    def place_of(self, error: BaseException) -> str:
        """Where in the function's own file `error` arose, as `file.py:line`; the file alone where it did not
        pass through it."""
        return _place(error, self.path)


@contextlib.contextmanager
def stdout_aside() -> Iterator[None]:
    """Sends to stderr what code from outside, or a process that it starts, writes to stdout within the block: stdout is
    for the result alone. One thread at a time."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a closed stdout or stderr: then there is nothing to keep clean
            own = os.dup(1)
            stack.callback(os.close, own)
            os.dup2(2, 1)
            stack.callback(os.dup2, own, 1)
        yield


def load_function(text: str, group: str = JUDGES) -> Loaded:
    """The function that `text` names: `./file.py:function` (relative to the working directory), or the name of an
    entry point of `group`.

    Raises RefNotFound for a file that is not there, UsageError for a file that cannot be run, a function it does not
    have, something that cannot be called, or an entry point that no package offers.
    """
    place, colon, name = text.strip().rpartition(":")
    if colon and place.endswith(".py"):
        return _from_file(Path(place).expanduser(), name)
    if text.strip().endswith(".py"):
        raise UsageError(f"'{text}' names a file and no function", hint=_FORM)
    return _from_package(text.strip(), group)


class _Source(importlib.abc.SourceLoader):
    """Runs the bytes that were hashed, and keeps no compiled copy beside the user's file."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data = path, data

    def get_filename(self, fullname: str) -> str:
        """The file's name, for tracebacks."""
        return str(self._path)

    def get_data(self, path: str | bytes) -> bytes:
        """The file as it was read once."""
        if str(path) != str(self._path):
            raise OSError(f"there is no {path!r}")
        return self._data


def _from_file(path: Path, name: str) -> Loaded:
    if not path.is_file():
        raise RefNotFound(f"no such file: {path}", hint=f"{_FORM}, relative to the working directory")
    if not name.isidentifier():
        raise UsageError(f"'{name}' is no name of a function", hint=_FORM)
    path = path.resolve()
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    found = getattr(_run(path, data, digest), name, None)
    if found is None:
        raise UsageError(
            f"{path.name} has no function '{name}'", hint="it has to stand at the top level of the file"
        )
    return Loaded(_callable(found, f"{path.name}:{name}"), f"sha256:{digest}", f"{path.name}:{name}", path)


def _run(path: Path, data: bytes, digest: str) -> ModuleType:
    module_name = f"zephyrctl_plugin_{digest[:16]}"
    spec = importlib.util.spec_from_loader(module_name, _Source(path, data))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and the like look their own module up by name
    try:
        with stdout_aside():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        hint = "only installed packages can be imported from it" if isinstance(error, ImportError) else None
        raise UsageError(f"{_place(error, path)}: {_told(error)}", hint=hint) from None
    return module


def _from_package(name: str, group: str) -> Loaded:
    from importlib.metadata import entry_points

    known = {entry.name: entry for entry in entry_points(group=group)}
    if name not in known:
        offered = ", ".join(sorted(known)) or "none is installed"
        raise UsageError(f"there is no '{name}' among the plug-ins of {group} ({offered})", hint=_FORM)
    entry = known[name]
    try:
        with stdout_aside():
            found = entry.load()
        source = inspect.getsourcefile(found)
    except Exception as error:
        raise UsageError(f"the plug-in '{name}' ({entry.value}) cannot be loaded: {_told(error)}") from None
    if source is None:
        raise UsageError(f"the plug-in '{name}' ({entry.value}) has no source file")
    path = Path(source)
    version = f"{entry.dist.name}=={entry.dist.version}" if entry.dist else ""
    digest = hashlib.sha256(path.read_bytes() + version.encode()).hexdigest()
    return Loaded(_callable(found, name), f"sha256:{digest}", name, path)


def _callable(found: Any, label: str) -> Callable[..., Any]:
    if not callable(found):
        raise UsageError(f"{label} is of type {type(found).__name__} and cannot be called")
    if inspect.iscoroutinefunction(found):
        raise UsageError(f"{label} is a coroutine function; a plain one is needed", hint="def, without async")
    return found  # type: ignore[no-any-return]


def _place(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path.name}:{error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{path.name}:{lines[-1]}" if lines else path.name


def _told(error: BaseException) -> str:
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    first = (said.strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
