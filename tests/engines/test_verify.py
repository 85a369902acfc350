"""Before a stopped run goes on: its checkpoints fit the engine, and steps made twice are the same."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs import delivered, job, train

from engine_shop import engine_settings
from zephyrctl.errors import Preempted, StageRejected, UsageError
from zephyrctl.events import Event, Metric, Recorder
from zephyrctl.losses import LossSpec
from zephyrctl.training import checkpoint, verify
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.job import Job
from zephyrctl.training.verify import make_sure, record_engine, require_same_engine

SINGLE = EngineChoice()


class Stopped(Exception):
    """Ends a run from within, as a crash would."""


def crash(step: int) -> Any:
    """An `emit` that ends the run once `step` is recorded, before it is saved."""

    def emit(event: Event) -> None:
        if isinstance(event, Metric) and event.step == step and "loss" in event.values:
            raise Stopped

    return emit


def cut(one: Job) -> Job:
    """The job after it crashed in its sixth step, with checkpoints of steps 3 and 5."""
    record_engine(one)
    for step, every in ((4, 3), (6, 5)):
        saving = one.config.model_copy(update={"save_steps": every})
        with pytest.raises(Stopped):
            train(replace(one, config=saving, emit=crash(step)))
    assert sorted(p.name for p in one.scratch.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-5"]
    return replace(one, config=one.config.model_copy(update={"verify_resume": 2}))


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_steps_made_twice_are_the_same_and_the_run_goes_on_undisturbed(
    task: str, tiny: Path, tmp_path: Path
) -> None:
    settings = {"lora": True, "lora_dropout": 0.3} if task == "sft" else {}
    whole = job(task, tiny, tmp_path / "whole", **settings)
    train(whole)
    word = whole.scratch / "kept" / "reference"
    one, seen = cut(job(task, tiny, tmp_path / "cut", **settings)), Recorder()
    one = replace(one, reference=word if task == "dpo" else None)
    before = {p: p.read_bytes() for p in one.scratch.rglob("*") if p.is_file() and p.name != verify.ENGINES}
    make_sure(replace(one, emit=seen), train)
    assert len(seen.texts()) == 1
    assert seen.texts()[0].startswith("replayed 2 steps to step 5 in ")
    after = {p: p.read_bytes() for p in one.scratch.rglob("*") if p.is_file() and p.name != verify.ENGINES}
    assert after == before
    train(one)
    assert delivered(one) == delivered(whole)


def test_a_checkpoint_that_does_not_come_out_again_is_refused(tiny: Path, tmp_path: Path) -> None:
    one = cut(job("sft", tiny, tmp_path))
    newest = tmp_path / "checkpoint-5"
    rows = (newest / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows[-1] = json.dumps(json.loads(rows[-1]) | {"loss": 0.5})
    (newest / "metrics.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    checkpoint.seal(newest, 5)
    with pytest.raises(
        StageRejected, match=r"checkpoint-3, replayed to step 5.*metrics\.jsonl.*loss is 0\.5"
    ) as caught:
        make_sure(one, train)
    assert caught.value.exit_code == 9
    assert caught.value.message.startswith(
        "checkpoint-3, replayed to step 5, does not give checkpoint-5 again"
    )
    assert "loss is 0.5 in one" in caught.value.message
    assert newest.is_dir()


def test_why_nothing_is_replayed_is_said(tiny: Path, tmp_path: Path) -> None:
    never: Any = lambda again: pytest.fail("nothing is to be trained")  # noqa: E731

    def said(one: Job) -> list[str]:
        seen = Recorder()
        make_sure(replace(one, emit=seen), never)
        return seen.texts()

    one = cut(job("sft", tiny, tmp_path))
    assert said(replace(one, config=one.config.model_copy(update={"verify_resume": 0}))) == []
    assert (
        "2 steps away, and 1 are"
        in said(replace(one, config=one.config.model_copy(update={"verify_resume": 1})))[0]
    )
    other = replace(one, plan=replace(one.plan, micro=4))
    assert "rows_per_pass 2, now 4" in said(other)[0]
    assert "rows_per_pass 2, now 4" in said(other)[0], "also where that run made no checkpoint of its own"
    assert (
        "several machines" in said(replace(one, choice=EngineChoice(name="ddp", processes=2, machines=2)))[0]
    )
    speechless = replace(one, loss=LossSpec())
    assert "the reference's log-probabilities are gone" in said(speechless)[0]
    checkpoint.forget(tmp_path / "checkpoint-3")
    assert "no earlier checkpoint" in said(one)[0]
    checkpoint.forget(tmp_path / "checkpoint-5")
    assert said(one) == []


def test_a_signal_while_steps_are_repeated_stops_as_ever(tiny: Path, tmp_path: Path) -> None:
    one = cut(job("sft", tiny, tmp_path))

    def interrupted(again: Job) -> None:
        train(
            replace(
                again,
                emit=lambda event: (
                    os.kill(os.getpid(), signal.SIGUSR1) if isinstance(event, Metric) else None
                ),
            )
        )

    with pytest.raises(Preempted):
        make_sure(one, interrupted)
    seen = Recorder()
    make_sure(replace(one, emit=seen), train)
    assert seen.texts()[0].startswith("replayed 2 steps")


def sealed(scratch: Path, step: int) -> None:
    folder = scratch / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "f").write_text(str(step), encoding="utf-8")
    checkpoint.seal(folder, step)


DDP2, DDP4 = EngineChoice(name="ddp", processes=2), EngineChoice(name="ddp", processes=4)
ZERO3, ZERO2 = EngineChoice(name="zero3", processes=2), EngineChoice(name="zero2", processes=2)
ZERO3_OVER_4, FSDP2 = replace(ZERO3, processes=4), EngineChoice(name="fsdp2", processes=2)


@pytest.mark.parametrize(("was", "now"), [(SINGLE, DDP2), (DDP2, SINGLE), (DDP2, DDP4), (ZERO3, ZERO3)])
def test_whole_checkpoints_fit_any_number_of_processes(
    was: EngineChoice, now: EngineChoice, tiny: Path, tmp_path: Path
) -> None:
    record_engine(job("sft", tiny, tmp_path, was))
    sealed(tmp_path, 10)
    require_same_engine(tmp_path, now)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (ZERO3, replace(ZERO3, processes=4)),
        (ZERO3, ZERO2),
        (ZERO2, SINGLE),
        (DDP2, ZERO3),
        (SINGLE, replace(ZERO3, name="fsdp2")),
    ],
)
def test_checkpoints_in_pieces_fit_their_engine_alone(
    was: EngineChoice, now: EngineChoice, tiny: Path, tmp_path: Path
) -> None:
    record_engine(job("sft", tiny, tmp_path, was))
    require_same_engine(tmp_path, now)
    sealed(tmp_path, 10)
    record_engine(job("sft", tiny, tmp_path, was))
    with pytest.raises(
        UsageError, match=rf"step 10 .*{was.name} over {was.processes} .*{now.name} over"
    ) as caught:
        require_same_engine(tmp_path, now)
    assert f"--engine {was.name} --num-processes {was.processes}" in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.xdist_group("engines")
def test_one_process_and_several_go_on_from_each_other(tiny: Path, tmp_path: Path) -> None:
    """The steps are made of the same rows whoever makes them, so the numbers agree to rounding."""
    whole = job("sft", tiny, tmp_path / "whole")
    train(whole)
    wanted = [json.loads(line) for line in delivered(whole)["metrics.jsonl"].splitlines()]
    for name, choices in (("down", (DDP2, SINGLE)), ("up", (SINGLE, DDP2))):
        for choice, stop in zip(choices, (4, None), strict=True):
            one = job("sft", tiny, tmp_path / name, choice, save_steps=1)
            make_sure(one, train)
            if stop is None:
                train(one)
            else:
                with pytest.raises(Stopped):
                    train(replace(one, emit=crash(stop)))
        found = [json.loads(line) for line in delivered(one)["metrics.jsonl"].splitlines()]
        assert [row["step"] for row in found] == [row["step"] for row in wanted]
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.slow
@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_several_processes_repeat_their_steps(
    engine: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_settings(engine, monkeypatch)
    one = job("sft", tiny, tmp_path, EngineChoice(name=engine, processes=2), save_steps=2)  # type: ignore[arg-type]
    record_engine(one)
    with pytest.raises(Stopped):
        train(replace(one, emit=crash(5)))
    seen = Recorder()
    again = one.config.model_copy(update={"verify_resume": 2})
    make_sure(replace(one, config=again, emit=seen), train)
    assert seen.texts()[0].startswith("replayed 2 steps to step 4")
