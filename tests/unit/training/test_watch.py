"""The watch: what it writes and says at which point, alone and as one of several."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.errors import NotFinite, StageRejected
from zephyrctl.events import Metric, Note, Progress, Recorder, Warning_
from zephyrctl.training import checkpoint
from zephyrctl.training.crew import Crew
from zephyrctl.training.journal import Journal
from zephyrctl.training.plan import make_plan
from zephyrctl.training.signals import StopSignal
from zephyrctl.training.watch import Watch


class Model:
    """Knows whether it is in training mode."""

    training = True

    def eval(self) -> None:
        self.training = False

    def train(self) -> None:
        self.training = True


@dataclass(frozen=True)
class Other(Crew):
    """One of two processes; what the other one says is put in. `said` notes the calls that meet the other."""

    rank: int = 1
    world: int = 2
    theirs: int = 0
    said: list[str] = field(default_factory=list)

    def wait(self) -> None:
        self.said.append("wait")

    def most(self, number: int) -> int:
        self.said.append("most")
        return max(number, self.theirs)

    def total(self, values: Sequence[float]) -> list[float]:
        raise AssertionError("nothing is summed here")


class Clock:
    """Seconds that pass only when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


PLAN = make_plan(
    12, batch=4, micro=2, epochs=2, max_steps=None, warmup=0.0, scheduler="linear", lr=1e-3, seed=1
)


@dataclass
class Run:
    """A watch with everything around it that a trainer would give."""

    watch: Watch
    said: Recorder
    clock: Clock
    model: Model = field(default_factory=Model)
    control: Any = field(
        default_factory=lambda: types.SimpleNamespace(should_save=False, should_training_stop=False)
    )

    def begin(self, step: int = 0) -> None:
        self.watch.on_train_begin(
            None, types.SimpleNamespace(global_step=step), self.control, model=self.model
        )

    def step(self, number: int, loss: float = 1.0, **logs: float) -> None:
        state = types.SimpleNamespace(global_step=number)
        self.control.should_save = False  # as the trainer does
        self.watch.on_step_begin(None, state, self.control)
        self.clock.now += 2.0
        self.watch.on_step_end(None, state, self.control)
        self.watch.on_log(
            None, state, self.control, {"loss": loss, "learning_rate": 1e-3, **logs}, model=self.model
        )

    def save(self, number: int) -> None:
        self.watch.on_save(None, types.SimpleNamespace(global_step=number), self.control)


def run(tmp_path: Path, task: str = "sft", **changes: Any) -> Run:
    said, clock = Recorder(), Clock()
    watch = Watch(
        task=task,
        plan=PLAN,
        journal=Journal(),
        scratch=tmp_path,
        emit=said,
        stop=StopSignal(),
        step_tokens=lambda step: 100 * step,
        clock=clock,
        **changes,
    )
    return Run(watch, said, clock)


def scores(*losses: float) -> Callable[[Any], dict[str, float]]:
    left = iter(losses)
    return lambda model: {"test/loss": next(left), "test/eos_rate": 0.9}


def test_one_row_a_step_and_held_out_scores_in_that_of_an_epochs_end(tmp_path: Path) -> None:
    one = run(tmp_path, held_out=scores(3.0, 2.0, 2.5), step_lengths=lambda step: {"length": 7.0})
    one.begin()
    for step in range(1, 7):
        one.step(step, grad_norm=0.5, entropy=1.5, runtime=9.9)
    rows = [json.loads(line) for line in one.watch.journal.texts()["metrics.jsonl"].splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    plain = {"step", "epoch", "loss", "lr", "grad_norm", "entropy", "length"}
    assert [set(row) - plain for row in rows] == [set(), set(), {"test/loss", "test/eos_rate"}] * 2
    assert [row["test/loss"] for row in rows if "test/loss" in row] == [2.0, 2.5]
    assert one.watch.journal.before["scores"] == {"test/loss": 3.0, "test/eos_rate": 0.9}
    assert one.model.training
    assert [e.step for e in one.said.events if isinstance(e, Metric)] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert [e.done for e in one.said.events if isinstance(e, Progress)] == list(range(7))
    notes = [e.text for e in one.said.events if isinstance(e, Note)]
    assert [note.split(":")[0] for note in notes] == ["held out, epoch 1", "held out, epoch 2"]
    (warning,) = [e.text for e in one.said.events if isinstance(e, Warning_)]
    assert "2.0000 (epoch 1) to 2.5000" in warning


def test_where_it_began_is_not_measured_again_on_resuming(tmp_path: Path) -> None:
    one = run(tmp_path, held_out=scores(math.nan))
    one.begin(step=2)
    assert one.watch.journal.before == {}
    one.begin()
    assert one.watch.journal.before == {"scores": {"test/eos_rate": 0.9}}, "the first step reports it"


def test_what_is_not_measured_is_said(tmp_path: Path) -> None:
    drawn: Any = types.SimpleNamespace(
        begin=lambda: {"test/answer_tokens": 9.0}, measure=lambda: {"test/kl": 0.1, "test/answer_tokens": 8.0}
    )
    one = run(tmp_path, "dpo", held_out=scores(3.0, 2.0))
    one.begin()
    assert "the KL to the starting model is not measured: no process holds all weights" in one.said.texts()
    assert one.watch.journal.before["scores"] == {"test/eos_rate": 0.9}, "the loss is ln 2 before every run"
    one = run(tmp_path, "dpo", held_out=scores(3.0, 2.0), samples=drawn)
    one.begin()
    one.step(3)
    assert not [text for text in one.said.texts() if "not measured" in text]
    assert one.watch.journal.before["scores"] == {"test/eos_rate": 0.9, "test/answer_tokens": 9.0}
    assert one.watch.journal.metrics[0]["test/kl"] == 0.1


def test_speed_and_memory_go_to_timing(tmp_path: Path) -> None:
    one = run(tmp_path, step_flops=lambda step: 1e12 * step, peak_flops=2e12)
    one.begin()
    one.step(1)
    one.step(2)
    first, second = one.watch.journal.timing
    assert first.pop("memory_peak_mib") > 10
    assert first == {"step": 1, "seconds": 2.0, "tokens": 100, "tokens_per_s": 50.0, "mfu": 0.25}
    assert second["mfu"] == 0.5
    assert set(one.watch.journal.metrics[0]) == {"step", "epoch", "loss", "lr"}
    unknown = run(tmp_path, step_flops=lambda step: 1e12)
    unknown.begin()
    unknown.step(1)
    assert "mfu" not in unknown.watch.journal.timing[0]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_number_that_is_not_finite_stops_at_once(wrong: float, tmp_path: Path) -> None:
    one = run(tmp_path, held_out=scores(1.0, wrong))
    one.begin()
    with pytest.raises(NotFinite, match=r"loss is (nan|inf) at step 1 of 6"):
        one.step(1, loss=wrong)
    with pytest.raises(NotFinite, match="grad_norm"):
        one.step(1, grad_norm=wrong)
    with pytest.raises(NotFinite, match=r"test/loss is (nan|inf) at step 3"):
        one.step(3)
    assert one.watch.journal.metrics == []


def test_dpo_begins_where_it_must(tmp_path: Path) -> None:
    one = run(tmp_path, "dpo", first_loss=math.log(2))
    one.step(1, loss=math.log(2) + 5e-4)
    with pytest.raises(StageRejected, match=r"0\.700000, not 0\.693147 \(ln 2\)"):
        one.step(1, loss=0.7)
    other = run(tmp_path, "dpo", first_loss=2.5)
    with pytest.raises(StageRejected, match=r"not 2\.500000: policy"):
        other.step(1, loss=0.7)


def test_checkpoints_by_steps(tmp_path: Path) -> None:
    one = run(tmp_path, save_steps=2)
    one.begin()
    for step, wanted in ((1, False), (2, True), (3, False), (4, True), (6, False)):
        one.step(step)
        assert one.control.should_save is wanted, "the end of the run needs none"


def test_checkpoints_by_time_take_no_more_than_a_twentieth_of_it(tmp_path: Path) -> None:
    one = run(tmp_path)
    one.begin()
    one.step(1)
    assert not one.control.should_save
    one.clock.now += 60
    one.step(2)
    assert one.control.should_save
    (tmp_path / "checkpoint-2").mkdir()
    one.clock.now += 10
    one.save(2)
    one.clock.now += 10 * 20 - 3
    one.step(3)
    assert not one.control.should_save
    assert one.watch.journal.timing[-1]["save_seconds"] == 10.0
    one.clock.now += 2
    one.step(4)
    assert one.control.should_save
    assert "save_seconds" not in one.watch.journal.timing[-1]


def test_a_saved_checkpoint_is_whole_and_holds_the_journal(tmp_path: Path) -> None:
    one = run(tmp_path, held_out=scores(1.0))
    one.begin()
    one.step(1)
    (tmp_path / "checkpoint-1").mkdir()
    one.save(1)
    found = checkpoint.newest(tmp_path)
    assert found.path is not None
    again = Journal.load(found.path)
    assert (again.metrics, again.before) == (one.watch.journal.metrics, one.watch.journal.before)


def test_one_who_does_not_lead_is_silent_and_computes_all_the_same(tmp_path: Path) -> None:
    crew = Other()
    one = run(tmp_path, crew=crew, held_out=scores(3.0, 2.0, 1.0), save_steps=2)
    one.begin()
    for step in range(1, 4):
        one.step(step)
    assert one.said.events == []
    assert [row.get("test/loss") for row in one.watch.journal.metrics] == [None, None, 2.0]
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "optimizer.pt").write_bytes(b"x")
    crew.said.clear()
    one.save(2)
    assert crew.said == ["wait", "wait", "wait"]
    assert not (folder / checkpoint.SEAL).exists(), "the leader seals"
    assert not (folder / "metrics.jsonl").exists(), "the leader writes the journal"
    assert len(list(folder.iterdir())) == 2, "its share of the hashes"


@pytest.mark.parametrize(("own", "theirs"), [(15, 0), (0, 15), (10, 15)])
def test_a_signal_to_any_of_them_stops_all_at_the_same_step(own: int, theirs: int, tmp_path: Path) -> None:
    one = run(tmp_path, crew=Other(theirs=theirs), save_steps=100)
    one.watch.stop.number = own or None
    one.begin()
    one.step(2)
    assert (one.control.should_save, one.control.should_training_stop) == (True, True)
    assert one.watch.stop.number == max(own, theirs)


def test_all_of_them_meet_as_often_whatever_each_of_them_sees(tmp_path: Path) -> None:
    calls = []
    for rank, signal in ((0, None), (1, 15)):
        crew = Other(rank=rank, theirs=15)
        one = run(tmp_path, crew=crew)
        one.watch.stop.number = signal
        one.begin()
        one.step(1)
        one.step(2)
        calls.append(list(crew.said))
    assert calls[0] == calls[1]


def test_trackers_get_it_all_from_the_leader_alone(tmp_path: Path) -> None:
    told: list[tuple[int, set[str]]] = []
    trackers: Any = types.SimpleNamespace(log=lambda step, values: told.append((step, set(values))))
    for crew in (Crew(), Other()):
        one = run(tmp_path, crew=crew, trackers=trackers, held_out=scores(3.0, 2.0))
        one.begin()
        one.step(2)
        one.step(3)
    speeds = {"speed/seconds", "speed/tokens", "speed/tokens_per_s", "speed/memory_peak_mib"}
    assert told == [
        (2, {"epoch", "loss", "lr", *speeds}),
        (3, {"epoch", "loss", "lr", "test/loss", "test/eos_rate", *speeds}),
    ]


def test_an_epochs_model_is_kept_with_its_scores(tmp_path: Path) -> None:
    kept: list[tuple[int, bool, float]] = []

    def keep(number: int, model: Model, journal: Journal) -> None:
        kept.append((number, model.training, journal.metrics[-1]["test/loss"]))

    one = run(tmp_path, keep_epoch=keep, held_out=scores(3.0, 2.0, 1.0))
    one.begin()
    for step in range(1, 7):
        one.step(step)
    assert kept == [(1, False, 2.0)], "the last epoch is the artifact itself"
    assert one.model.training
