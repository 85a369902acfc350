from pathlib import Path

import pytest

from zephyrctl.artifacts.store import Store
from zephyrctl.config import STAGES, StageConfig
from zephyrctl.errors import RefNotFound
from zephyrctl.events import Note, Progress, Recorder, Warning_
from zephyrctl.recipes import chain as chain_module
from zephyrctl.recipes.chain import Chain, stage_parts


@pytest.fixture
def told() -> Recorder:
    return Recorder()


def make_chain(folder: Path, told: Recorder, **more) -> Chain:
    return Chain(Store.open(folder / "artifacts"), told, **more)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_its_parts(stage):
    config_class, run = stage_parts(stage)
    assert issubclass(config_class, StageConfig)
    assert config_class.stage == stage
    assert callable(run)


def test_a_step_runs_with_the_sandbox_edition_and_is_found_done_next_time(tmp_path, told):
    chain = make_chain(tmp_path, told, overrides={"gen-sft": {"rows": 6}}, steps=2)
    made = chain.step("gen-sft", "a teacher answers", teacher="sandbox")
    assert (chain.fresh, chain.made) == (1, {"sft-data": "sft-data@v1"})
    assert made.manifest.edition == "sandbox + rows"
    assert made.manifest.config["rows"] == 6
    again = make_chain(tmp_path, told, overrides={"gen-sft": {"rows": 6}})
    assert again.step("gen-sft", "a teacher answers", teacher="sandbox").ref == made.ref
    assert again.fresh == 0


def test_of_what_a_stage_tells_running_progress_passes_and_words_stay_in_its_log(tmp_path, told, monkeypatch):
    real = chain_module.stage_parts("gen-sft")

    def run(config, work):
        work.emit(Progress("asking", 1, 2))
        work.emit(Progress("asking", 2, 2))
        work.emit(Warning_("mind this"))
        return real[1](config, work)

    monkeypatch.setattr(chain_module, "stage_parts", lambda stage: (real[0], run))
    chain = make_chain(tmp_path, told, overrides={"gen-sft": {"rows": 6}}, steps=7)
    chain.step("gen-sft", "a teacher answers", teacher="sandbox")
    notes = [event.text for event in told.events if isinstance(event, Note)]
    assert notes[0] == "1/7 gen-sft: a teacher answers"
    assert len(notes) == 2
    assert notes[1].strip().startswith("sft-data@v1")
    running = [event for event in told.events if isinstance(event, Progress)]
    assert running[0] == Progress("asking", 1, 2)
    assert all(event.done < (event.total or 0) for event in running)
    assert Warning_("mind this") in told.events


def test_an_error_names_the_stage(tmp_path, told):
    with pytest.raises(RefNotFound, match=r"^binarize: "):
        make_chain(tmp_path, told).step("binarize", "pairs", feedback="nothing@v3")


def test_side_outputs_are_among_the_refs(tmp_path, told):
    chain = make_chain(tmp_path, told, overrides={"gen-prefs": {"rows": 8}})
    chain.step("gen-prefs", "answers", teacher="sandbox")
    chain.step("binarize", "pairs", feedback="feedback@v1")
    assert chain.made == {"feedback": "feedback@v1", "prefs": "prefs@v1", "prefs-best": "prefs-best@v1"}
