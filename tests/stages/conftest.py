"""Tiny models for the stage tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def load_tiny() -> Any:
    """The module that builds tiny models."""
    spec = importlib.util.spec_from_file_location(
        "tiny_models", Path(__file__).parents[1] / "unit" / "training" / "tiny.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are faster on one thread, above all where tests share the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny model folder; read only."""
    return load_tiny().make_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Path]:
    """Builds further tiny models."""
    return load_tiny().make_tiny
