"""`--lengths`: a plan without data, weights or GPUs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from zephyrctl.artifacts.store import Store
from zephyrctl.editions.load import load
from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.events import Recorder, Table
from zephyrctl.stages.dpo.config import DpoConfig
from zephyrctl.stages.sft.config import SftConfig
from zephyrctl.training.lengths import measure, workload_of
from zephyrctl.training.packing import PackedRows, make_packs
from zephyrctl.training.planning import plan_from_lengths, shape_to_plan
from zephyrctl.training.token_rows import PairRows, PairTokens, SftRows, SftTokens


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def save(path: Path, lengths: object) -> Path:
    import numpy as np

    np.save(path, np.array(lengths))
    return path


def test_the_paper_is_planned_for_machines_that_are_elsewhere(tmp_path: Path, store: Store) -> None:
    lengths = save(tmp_path / "lengths.npy", [1000, 1744] * 2000)
    config = SftConfig(**(load("zephyr-7b/paper").sections["sft"] | {"packing": "wrapped"}))
    told = Recorder()
    plan = plan_from_lengths(config, lengths, store, told, hardware="16xA100-80GB")
    assert plan["data"]["tokens"] == 2744 * 2000
    assert plan["steps"]["steps"] == math.ceil(2744 * 2000 / 2048 / 512)
    assert plan["engine"]["name"] == "zero3"
    assert plan["missing"] == []
    assert {event.title for event in told.events if isinstance(event, Table)} >= {
        "plan",
        "row lengths",
        "cost",
    }
    assert not store.root.exists(), "planning writes nothing"


def test_a_model_at_hand_is_planned_for_this_machine(tmp_path: Path, store: Store, tiny: Path) -> None:
    lengths = save(tmp_path / "lengths.npy", [30, 40, 50] * 40)
    small = plan_from_lengths(SftConfig(init=str(tiny), max_length=64), lengths, store, Recorder())
    assert small["steps"]["steps"] == 4
    assert small["memory"]["device"] > 0


def test_a_model_must_be_named_and_known(tmp_path: Path, store: Store) -> None:
    lengths = save(tmp_path / "lengths.npy", [30])
    with pytest.raises(UsageError, match="no model to plan for"):
        plan_from_lengths(SftConfig(), lengths, store, Recorder())
    with pytest.raises(UsageError, match="context"):
        plan_from_lengths(SftConfig(init="google/gemma-2b", max_length=9000), lengths, store, Recorder())
    with pytest.raises(RefNotFound):
        shape_to_plan("./nowhere", store)
    assert shape_to_plan("mistralai/Mistral-7B-v0.1", store).size == "7.2 B"


def test_a_folder_needs_no_weights_to_be_planned_for(tmp_path: Path, store: Store, tiny: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_bytes((tiny / "config.json").read_bytes())
    assert shape_to_plan(str(tmp_path / "m"), store).parameters == shape_to_plan(str(tiny), store).parameters


def test_tokenised_rows_are_the_workload_that_their_lengths_promised() -> None:
    lengths = [5, 9, 3, 7]
    rows = SftRows(SftTokens([1] * n, [1] * n) for n in lengths)
    config = SftConfig(max_length=12, packing="best-fit")
    packed = PackedRows(rows, make_packs(lengths, 12, "best-fit", seed=config.seed))
    assert workload_of(packed) == measure(lengths, config)
    assert workload_of(rows) == measure(lengths, SftConfig(max_length=12))
    pairs = PairRows([PairTokens([1] * 3, [2] * 4, [3] * 5)])
    assert workload_of(pairs) == measure([(3, 4, 5)], DpoConfig())
    assert workload_of(rows, cut=2, cut_tokens=8).cut_tokens == 8
