"""By whom, when and with what a version was made. Information only: it enters no digest of the content."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import zephyrctl
from zephyrctl.artifacts.lock import host

_PACKAGES = ("pyarrow", "pydantic", "torch", "transformers", "trl", "tokenizers", "openai", "anthropic")


def provenance(attempt: str) -> dict[str, Any]:
    """Time (UTC), host, Python, packages; `attempt` ties the outputs of one run of a step together."""
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": host(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": dict(_packages()),
        "attempt": attempt,
    }


@functools.cache
def code() -> dict[str, Any]:
    """The version of zephyrctl, and of its git checkout where it runs from one."""
    found: dict[str, Any] = {"version": zephyrctl.__version__}
    source = Path(__file__).resolve().parents[3]
    if (source / ".git").exists():
        commit = _git(source, "rev-parse", "HEAD")
        if commit:
            found |= {
                "commit": commit,
                "dirty": bool(_git(source, "status", "--porcelain", "--untracked-files=no")),
            }
    return found


@functools.cache
def _packages() -> tuple[tuple[str, str], ...]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
