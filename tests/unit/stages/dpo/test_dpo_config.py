"""Settings of `dpo`."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from zephyrctl.config import step_key
from zephyrctl.errors import UsageError
from zephyrctl.losses import loss_inputs
from zephyrctl.stages.dpo.config import DpoConfig

KEY = {"init": "sha256:1", "reference": "sha256:1", "data": "sha256:2"}


@pytest.mark.parametrize("change", [{"beta": 0.2}, {"max_prompt_length": 64}, {"epochs": 1}])
def test_what_makes_another_model_enters_the_key(change: dict[str, object]) -> None:
    assert step_key(DpoConfig(**change), KEY) != step_key(DpoConfig(), KEY)


@pytest.mark.parametrize("change", [{"beta": 0}, {"beta": -1}, {"max_prompt_length": 0}])
def test_settings_that_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DpoConfig(**change)


def test_defaults_are_the_papers() -> None:
    made = DpoConfig()
    assert (made.epochs, made.lr, made.beta, made.scheduler, made.warmup) == (3.0, 5e-7, 0.1, "linear", 0.1)
    assert (made.max_length, made.max_prompt_length, made.batch_size) == (1024, 512, 32)


def test_an_unknown_loss_is_named_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="unknown"):
        loss_inputs(DpoConfig(loss="unknown").spec())


def test_a_prompt_may_fill_half_where_nothing_is_said() -> None:
    assert DpoConfig(max_length=96).max_prompt_length == 48
    assert DpoConfig(max_length=96, max_prompt_length=90).max_prompt_length == 90
    assert DpoConfig(max_length=96, max_prompt_length=512).max_prompt_length == 48
