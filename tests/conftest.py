"""Shared by all tests: a clean environment, and the recorded real data where it lies beside the project."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Interrupts arrive, also where the tests run in the background of a shell, which ignores them for its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU say so where there is none."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No keys, no places and no network habits of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("ZEPHYRCTL_", "OPENAI_", "ANTHROPIC_")) or name in ("NO_COLOR", "FORCE_COLOR"):
            if name == "ZEPHYRCTL_PARITY_DATA":
                continue
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", os.fspath(ROOT / "tests" / "no-such-folder"))


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> Iterator[None]:
    """Trainers collect garbage at every run; what lives from before is none, and takes a second to look through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def project_root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def parity_data() -> Path:
    """The folder of recorded real data; skips where it is absent."""
    folder = Path(os.environ.get("ZEPHYRCTL_PARITY_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no recorded data at {folder.name} (set ZEPHYRCTL_PARITY_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny model folder; read only."""
    from zephyrctl.testing.tiny import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Path]:
    """Builds further tiny models."""
    from zephyrctl.testing.tiny import make_tiny

    return make_tiny
