"""Settings of two editions side by side."""

from __future__ import annotations

import pytest

from zephyrctl.config import StageConfig
from zephyrctl.editions.compare import UNSETTLED, differences, settings
from zephyrctl.editions.load import Edition, load, names
from zephyrctl.stages.binarize.config import BinarizeConfig
from zephyrctl.stages.dpo.config import DpoConfig
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.sft.config import SftConfig

CLASSES: dict[str, type[StageConfig]] = {"sft": SftConfig, "binarize": BinarizeConfig, "dpo": DpoConfig}


def edition(**sections: dict[str, object]) -> Edition:
    return Edition("x", "", "", sections)


@pytest.mark.parametrize("name", names())
def test_an_edition_does_not_differ_from_itself(name: str) -> None:
    assert differences(load(name), load(name), CLASSES) == []


def test_what_sets_the_handbooks_apart() -> None:
    found = differences(load("zephyr-7b/handbook-0.2"), load("zephyr-7b/handbook-0.3"), CLASSES)
    shown = {f"{d.stage}.{d.field}": (d.first, d.second) for d in found}
    assert (
        shown.items()
        >= {
            "sft.warmup": (0.0, 0.1),
            "sft.batch_size": (512, 128),
            "dpo.optimizer": ("rmsprop", "adamw"),
            "dpo.batch_size": (64, 128),
            "dpo.epochs": (3, 1),
            "dpo.beta": (0.1, 0.01),
            "dpo.scheduler": ("linear", "cosine"),
            "dpo.bos": (False, True),
            "dpo.header_in_answer": (False, True),
        }.items()
    )
    assert not [key for key in shown if key.startswith("binarize")]


def test_a_value_equal_to_the_default_is_no_difference() -> None:
    assert differences(edition(sft={"seed": 42}), edition(sft={"warmup": 0.1}), CLASSES) == []
    [one] = differences(edition(sft={"system": ""}), edition(sft={"system": None}), CLASSES)
    assert (one.field, one.first, one.second) == ("system", "", None)


def test_a_stage_that_only_one_settles_is_one_line() -> None:
    [one] = differences(edition(sft={"lr": 1.0}), edition(), CLASSES)
    assert (one.stage, one.first, one.second) == ("sft", "settled", UNSETTLED)


def test_settings_leave_out_what_is_runtime_or_unknown() -> None:
    found = settings(load("zephyr-7b/paper"), GenSftConfig)
    assert "teacher" not in found  # required: it has no default
    assert "concurrency" not in found
    assert found["max_tokens"] == 1024
    assert settings(edition(sft={"micro_batch": 4}), SftConfig)["micro_batch"] == 4
