"""What is said of a run before it begins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from zephyrctl.editions.load import load
from zephyrctl.errors import EnvironmentFault
from zephyrctl.events import Table, Warning_
from zephyrctl.stages.dpo.config import DpoConfig
from zephyrctl.stages.sft.config import SftConfig
from zephyrctl.training.costs import estimate_disk, estimate_time
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.footprint import Shape
from zephyrctl.training.hardware import GIB, Hardware, parse_hardware
from zephyrctl.training.known_shapes import known_shape
from zephyrctl.training.lengths import measure, plan_steps
from zephyrctl.training.outlook import Assumptions, Outlook, free_bytes, look_ahead
from zephyrctl.training.outlook_text import document, events, tables

MISTRAL = known_shape("mistralai/Mistral-7B-v0.1")
LENGTHS = [200, 900, 1372, 2500, 3000, 64] * 200
PAPER = SftConfig(packing="wrapped", max_length=2048, batch_size=64, epochs=1)
LAPTOP = Hardware((), 8 * GIB, 4)


def look(gpus: str = "16xA100-80GB", config: SftConfig = PAPER, **more: object) -> Outlook:
    return look_ahead(config, MISTRAL, parse_hardware(gpus), measure(LENGTHS, config), **more)  # type: ignore[arg-type]


def test_a_run_on_described_machines_lacks_nothing() -> None:
    found = look()
    found.require_ready()
    assert found.choice.name == "zero3"
    assert found.room == 80 * 10**9
    assert found.memory is not None
    assert found.memory.device < 80e9
    assert found.plan.steps == -(-sum(LENGTHS) // 2048 // 64)
    assert found.places == ()


def test_every_number_of_the_document_is_json_and_every_cell_of_the_tables_text() -> None:
    for found in (look(), look("1x24GB"), look_ahead(PAPER, MISTRAL, LAPTOP, measure(LENGTHS, PAPER))):
        body = json.loads(json.dumps(document(found)))
        assert body["data"]["tokens"] == sum(LENGTHS)
        assert body["steps"]["steps"] == found.plan.steps
        for table in tables(found):
            assert all(len(row) == len(table.columns) for row in table.rows)
            assert all(isinstance(cell, str) for row in table.rows for cell in row)
    shown = {table.title: table for table in tables(look())}
    assert "memory of each process, at its fullest" in shown
    assert all(isinstance(event, Table) for event in events(look()))


def test_what_does_not_fit_here_is_shown_elsewhere() -> None:
    found = look_ahead(PAPER, MISTRAL, LAPTOP, measure(LENGTHS, PAPER))
    assert [place.name for place in found.places] == ["1x24GB", "1x80GB", "8x80GB", "16x80GB"]
    assert [place.fits for place in found.places] == [False, False, True, True]
    with pytest.raises(EnvironmentFault, match="needs about"):
        found.require_ready()
    assert any(table.title == "on other machines" for table in tables(found))


def test_missing_packages_and_disk_are_named_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zephyrctl.training import outlook

    monkeypatch.setattr(outlook, "free_bytes", lambda folder: 3 * GIB)
    hardware = replace(parse_hardware("16xA100-80GB"), packages=frozenset(), described=False)
    config = PAPER.model_copy(update={"engine": "zero3"})
    found = look_ahead(config, MISTRAL, hardware, measure(LENGTHS, config), store=tmp_path)
    assert [lack.fix.partition(" ")[0] for lack in found.missing] == ["pip", "free"]
    assert "3.0 GiB are free" in found.missing[1].what
    warnings = [event.text for event in events(found) if isinstance(event, Warning_)]
    assert warnings[0].endswith("what to do: pip install 'zephyrctl[deepspeed]'")
    with pytest.raises(EnvironmentFault, match="deepspeed"):
        found.require_ready()


def test_time_follows_from_the_stated_mfu() -> None:
    half, quarter = look(assumptions=Assumptions(mfu=0.5)).time, look(assumptions=Assumptions(mfu=0.25)).time
    assert half is not None
    assert quarter is not None
    assert half.seconds is not None
    assert quarter.seconds == pytest.approx(2 * half.seconds)
    assert half.stated
    assert half.gpu_hours == pytest.approx(half.seconds * 16 / 3600)
    assert half.flops == pytest.approx(6 * 7.1e9 * sum(LENGTHS), rel=0.1)
    assert half.seconds == pytest.approx(half.flops / (16 * 312e12 * 0.5))


def test_no_time_is_promised_for_a_gpu_that_is_not_in_the_table() -> None:
    found = look("16x80GB")
    assert found.time is not None
    assert found.time.seconds is None
    rows = dict(tables(found)[-1].rows)
    assert rows["time"].startswith("not known")


def test_the_reference_speaks_once_whatever_the_epochs() -> None:
    shape, hardware, choice = MISTRAL, parse_hardware("1xH200"), EngineChoice(device="cuda")
    pairs = [(100, 50, 60)] * 640
    times = []
    for epochs in (1, 3):
        config = DpoConfig(epochs=epochs)
        work = measure(pairs, config)
        found = estimate_time(config, shape, choice, hardware, work, plan_steps(work, config, 4))
        assert found is not None
        times.append(found.flops)
    # an epoch is 3 forward passes' worth, the reference one more
    assert times[1] / times[0] == pytest.approx(10 / 4)


def test_checkpoints_hold_what_resuming_needs() -> None:
    parameters = MISTRAL.parameters or 0
    plain = estimate_disk(PAPER, MISTRAL, EngineChoice(), speed=2e9)
    assert plain is not None
    assert plain.checkpoint == 12 * parameters
    assert plain.stall == pytest.approx(6 * parameters / 1e9)
    assert plain.model == 2 * parameters
    assert plain.needed == 3 * plain.checkpoint + plain.model
    adapted = estimate_disk(PAPER.model_copy(update={"lora": True}), MISTRAL, EngineChoice())
    assert adapted is not None
    assert adapted.checkpoint < plain.checkpoint / 50
    kept = estimate_disk(
        PAPER.model_copy(update={"keep_epochs": True, "epochs": 3.0}), MISTRAL, EngineChoice()
    )
    assert kept is not None
    assert kept.model == 4 * plain.model


def test_a_model_that_cannot_be_counted_still_has_its_steps() -> None:
    found = look_ahead(PAPER, Shape("Mamba", None, None, 10), LAPTOP, measure(LENGTHS, PAPER))
    assert (found.memory, found.time, found.disk) == (None, None, None)
    assert found.plan.steps > 0
    assert tables(found)
    assert document(found)["memory"] is None


def test_the_papers_edition_is_planned_without_a_file_at_hand() -> None:
    section = load("zephyr-7b/paper").sections["sft"]
    config = SftConfig(**section)
    shape = known_shape(str(section["init"]))
    found = look_ahead(config, shape, parse_hardware("16xA100-80GB"), measure(LENGTHS * 10, config))
    assert found.plan.batch == 512
    assert found.missing == ()


def test_free_bytes_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.05)
