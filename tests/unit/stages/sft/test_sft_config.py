"""Settings of `sft`: which make another model, and which only another way to it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from zephyrctl.config import step_key
from zephyrctl.stages.sft.config import SftConfig

KEY = {"init": "sha256:1", "data": "sha256:2"}


@pytest.mark.parametrize(
    "change",
    [{"micro_batch": 2}, {"save_steps": 5}, {"out": "mine"}, {"note": "why"}, {"init": "x"}, {"data": ["y"]}],
)
def test_ways_and_names_do_not_enter_the_key(change: dict[str, object]) -> None:
    assert step_key(SftConfig(**change), KEY) == step_key(SftConfig(), KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-4}, {"epochs": 2}, {"max_steps": 9}, {"batch_size": 4}, {"max_length": 512}, {"packing":
        True}, {"scheduler": "linear"}, {"warmup": 0}, {"dtype": "fp32"}, {"system": ""}, {"seed": 1},
        {"keep_epochs": True}, {"test_fraction": 0.2}, {"weight_decay": 0.1}, {"max_grad_norm": 0.5},
        {"adam_beta2": 0.95},
    ],
)  # fmt: skip
def test_what_makes_another_model_enters_the_key(change: dict[str, object]) -> None:
    assert step_key(SftConfig(**change), KEY) != step_key(SftConfig(), KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"lr": -1},
        {"batch_size": 0},
        {"warmup": 1},
        {"dtype": "fp8"},
        {"scheduler": "step"},
        {"out": " "},
    ],
)
def test_settings_that_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SftConfig(**change)


@pytest.mark.parametrize(
    ("settings", "label"),
    [({"epochs": 1}, "e1"), ({"epochs": 0.5}, "e0.5"), ({"epochs": 3, "max_steps": 200}, "s200")],
)
def test_the_default_name_says_how_long(settings: dict[str, object], label: str) -> None:
    assert SftConfig(**settings).length_label() == label


def test_a_pass_is_never_more_than_a_batch() -> None:
    assert SftConfig(batch_size=4, micro_batch=16).rows_per_pass() == 4
    assert SftConfig(batch_size=32).rows_per_pass() == 8
    assert SftConfig(batch_size=64).rows_per_pass(7_000_000_000) == 8
    assert SftConfig(batch_size=64).rows_per_pass(1_000_000) == 32
    assert SftConfig(batch_size=64, micro_batch=4).rows_per_pass(1_000_000) == 4
