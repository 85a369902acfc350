"""Noise is kept off for the time of the block and comes back afterwards."""

from __future__ import annotations

import logging
import os
import warnings

import pytest

from zephyrctl import libraries
from zephyrctl.libraries import quiet, yield_cores


def test_loggers_and_warnings_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("trl")
    before = logger.level
    with quiet():
        assert logger.level == logging.ERROR
        warnings.warn("not heard", UserWarning, stacklevel=1)
    assert logger.level == before
    assert "not heard" not in capsys.readouterr().err


def test_the_users_own_thread_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    yield_cores()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.delenv("KMP_BLOCKTIME", raising=False)
    yield_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    yield_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_tiny_models_take_one_thread_and_others_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    libraries.fit_threads(1_000)
    own = libraries._threads["own"]
    assert torch.get_num_threads() == 1
    libraries.fit_threads(libraries.TINY)
    assert torch.get_num_threads() == own
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    libraries.fit_threads(1_000)
    assert torch.get_num_threads() == own
