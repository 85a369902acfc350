"""Makes what the tests of engines share importable, and the fixtures of theirs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_shop import Shop, new_shop
from zephyrctl.artifacts.artifact import Artifact


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A store and data of one test."""
    return new_shop(tmp_path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Both stages by one process."""
    shop = new_shop(tmp_path_factory.mktemp("alone"))
    return {"sft": shop.sft(), "dpo": shop.dpo()}
