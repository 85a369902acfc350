"""Runs of the tiny model: what the loss is a mean of, what stops a run, and that resuming changes nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import EnvironmentFault, Interrupted, NotFinite, Preempted, StageRejected
from zephyrctl.events import Metric, Note, Progress, Recorder
from zephyrctl.losses import LossSpec
from zephyrctl.records import Message, PreferenceRow, SftRow
from zephyrctl.training import checkpoint, loop, scoring, trainers
from zephyrctl.training.job import Job
from zephyrctl.training.model import load_model
from zephyrctl.training.packing import pack_rows
from zephyrctl.training.plan import make_plan
from zephyrctl.training.reference import read_reference, write_reference
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.signals import StopSignal
from zephyrctl.training.token_rows import PairRows, SftRows
from zephyrctl.training.tokens import pair_tokens, sft_tokens


class Settings(TrainingConfig):
    stage = "sft"


class Outcome:
    """What a run left in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
        self.metrics = [json.loads(line) for line in self.text.splitlines()]
        self.weights = (folder / "model.safetensors").read_bytes()


def messages(number: int, answer: str) -> tuple[list[Message], list[Message]]:
    asked = "say " + "abc"[number % 3] * (number % 5 + 1)
    return [Message(role="user", content=asked)], [Message(role="assistant", content=answer)]


def rows(task: str, tiny: Path, count: int = 21) -> Any:
    tokenizer = load_tokenizer(tiny)
    made: list[Any] = []
    for number in range(count):
        prompt, good = messages(number, "xyz"[number % 3] * (number % 7 + 1))
        _, bad = messages(number, "mno"[number % 3] * (number % 4 + 1))
        if task == "sft":
            made.append(("f", SftRow(row_id=str(number), prompt_id=str(number), messages=[*prompt, *good])))
        else:
            pair = PreferenceRow(prompt_id=str(number), prompt=prompt, chosen=good, rejected=bad)
            made.append(("f", pair))
    if task == "sft":
        return sft_tokens(made, tokenizer, max_length=64).rows
    return pair_tokens(made, tokenizer, max_length=64, max_prompt_length=32).rows


def job(task: str, tiny: Path, scratch: Path, *, train: Any = None, test: int = 0, **changes: Any) -> Job:
    settings = {"lr": 1e-3, "batch_size": 8, "dtype": "fp32", "epochs": 2, "micro_batch": 4, **changes}
    config = Settings(**settings)
    data = train if train is not None else rows(task, tiny)
    plan = make_plan(
        len(data), batch=config.batch_size, micro=config.rows_per_pass(), epochs=config.epochs,
        max_steps=config.max_steps, warmup=config.warmup, scheduler=config.scheduler, lr=config.lr, seed=config.seed,
    )  # fmt: skip
    held = rows(task, tiny)[:test]
    return Job(
        task, config, tiny, data, SftRows(held) if task == "sft" else PairRows(held), plan, scratch,
        loss=LossSpec() if task == "dpo" else None, base=("start", "sha256:0"),
    )  # fmt: skip


def run(work: Job) -> Outcome:
    loop.run(work)
    return Outcome(work.scratch / "kept" / "final")


@contextlib.contextmanager
def stopped_after(
    monkeypatch: pytest.MonkeyPatch, step: int | None, number: int = signal.SIGTERM
) -> Iterator[Any]:
    """An `emit` that behaves like a signal arriving during the step after `step`; None: before the reference reads."""
    state = StopSignal()

    @contextlib.contextmanager
    def signals() -> Iterator[StopSignal]:
        yield state

    def emit(event: Any) -> None:
        begun = isinstance(event, Progress) and event.done == step == 0
        reads = isinstance(event, Note) and "the reference reads" in event.text and step is None
        if begun or reads or (isinstance(event, Metric) and event.step == step):
            state.number = number

    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_signal", signals)
        yield emit


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The row numbers of every pass, in the order in which they are made."""
    seen: list[tuple[int, ...]] = []
    real = trainers.Feed.__getitem__

    def note(self: Any, one: Any) -> Any:
        seen.append(one.rows)
        return real(self, one)

    monkeypatch.setattr(trainers.Feed, "__getitem__", note)
    return seen


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_the_loss_is_the_mean_over_the_global_batch_however_it_is_split(
    task: str, tiny: Path, tmp_path: Path
) -> None:
    runs = [run(job(task, tiny, tmp_path / str(m), micro_batch=m)).metrics for m in (8, 3)]
    steps = 2 * math.ceil(21 / 8)
    assert sum("loss" in row for row in runs[0]) == steps
    for other in runs[1:]:
        for left, right in zip(runs[0], other, strict=True):
            assert left.keys() == right.keys()
            for name, value in left.items():
                assert right[name] == pytest.approx(value, abs=1e-5), name


def test_the_loss_is_that_of_a_plain_forward_pass(tiny: Path, tmp_path: Path) -> None:
    import torch

    work = job("sft", tiny, tmp_path, batch_size=21, micro_batch=5, warmup=0, max_steps=1)
    model, total, count = load_model(tiny), 0.0, 0
    for row in work.train:
        with torch.no_grad():
            found = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].log_softmax(-1)
        for place, label in enumerate(row.labels[1:]):
            if label != -100:
                total, count = total - float(found[place, label]), count + 1
    assert run(work).metrics[0]["loss"] == pytest.approx(total / count, abs=1e-5)


def test_packed_rows_give_the_loss_of_rows_apart(tiny: Path, tmp_path: Path) -> None:
    apart = rows("sft", tiny)
    packed = pack_rows(apart, 150)
    assert len(packed) < len(apart)
    settings = {"batch_size": 100, "micro_batch": 4, "epochs": 3, "test": 2}
    left = run(job("sft", tiny, tmp_path / "a", train=apart, **settings)).metrics
    right = run(job("sft", tiny, tmp_path / "b", train=packed, **settings)).metrics
    for a, b in zip(left, right, strict=True):
        for name in ("loss", "test/loss", "grad_norm"):
            assert b[name] == pytest.approx(a[name], abs=1e-5)


def test_steps_are_made_of_the_rows_that_the_plan_names(
    tiny: Path, tmp_path: Path, fed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job("sft", tiny, tmp_path / "whole", micro_batch=3)
    batches = [batch for epoch in (0, 1) for batch in work.plan.batches(epoch)]
    run(work)
    passes = [math.ceil(len(batch) / 3) for batch in batches]
    whole = list(fed)
    for batch, count in zip(batches, passes, strict=True):
        assert sorted(row for one in fed[:count] for row in one) == sorted(batch)
        del fed[:count]
    assert fed == []
    for stop in (2, 3):  # within an epoch, and between two
        scratch = tmp_path / str(stop)
        with stopped_after(monkeypatch, stop - 1) as emit, pytest.raises(Preempted):
            run(replace(job("sft", tiny, scratch, micro_batch=3), emit=emit))
        fed.clear()
        run(job("sft", tiny, scratch, micro_batch=3))
        # passes of steps made before may be fetched once more on the way, but those that follow are the same
        assert fed[-sum(passes[stop:]) :] == whole[sum(passes[:stop]) :]
        fed.clear()


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_dpo_begins_at_ln_2_and_learns(dtype: str, tiny: Path, tmp_path: Path) -> None:
    metrics = run(job("dpo", tiny, tmp_path, test=2, dtype=dtype, epochs=3)).metrics
    assert metrics[0]["step"] == 1
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-5 if dtype == "fp32" else 2e-2)
    held_out = [row for row in metrics if "test/loss" in row]
    assert [row["epoch"] for row in held_out] == [1, 2, 3]
    assert held_out[-1]["test/loss"] < math.log(2)
    assert 0 <= held_out[-1]["test/accuracy"] <= 1
    assert set(metrics[1]) >= {
        "step", "epoch", "loss", "lr", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins",
        "rewards/accuracies", "logps/chosen", "logps/rejected",
    }  # fmt: skip


def test_what_the_reference_said_is_delivered_and_taken_from_disk(tiny: Path, tmp_path: Path) -> None:
    names: list[str] = []
    work = job("dpo", tiny, tmp_path / "a", test=2)
    first = run(replace(work, deliver=lambda name, folder: names.append(f"{name} {folder.name}")))
    assert names == ["reference reference", "final final"]
    known = tmp_path / "a" / "kept" / "reference"
    spoken = read_reference(known)
    assert [len(side) for side in (*spoken.train, *spoken.test)] == [21, 21, 2, 2]
    seen = Recorder()
    again = run(replace(job("dpo", tiny, tmp_path / "b", test=2), reference=known, verify_ref=4, emit=seen))
    assert again.text == first.text
    assert again.weights == first.weights
    assert not (tmp_path / "b" / "kept" / "reference").exists()
    assert "4 of the reference's log-probabilities recomputed" in " ".join(seen.texts())


@pytest.mark.parametrize(("verify", "said"), [(0, "ln 2"), (3, "differ from recomputed ones by up to 1")])
def test_dpo_against_another_reference_is_refused(verify: int, said: str, tiny: Path, tmp_path: Path) -> None:
    work = job("dpo", tiny, tmp_path / "a", max_steps=1, warmup=0)
    run(work)
    known = tmp_path / "a" / "kept" / "reference"
    spoken = read_reference(known)
    wrong = [value - len(row.chosen_ids) for value, row in zip(spoken.train[0], work.train, strict=True)]
    write_reference(known, replace(spoken, train=(wrong, spoken.train[1])))
    with pytest.raises(StageRejected, match=said):
        run(replace(job("dpo", tiny, tmp_path / "b"), reference=known, verify_ref=verify))
    assert not (tmp_path / "b" / "kept").exists()


def test_a_loss_without_a_reference_asks_none(tiny: Path, tmp_path: Path) -> None:
    work = replace(job("dpo", tiny, tmp_path, test=3), loss=LossSpec(("simpo",), beta=2.0))
    metrics = run(work).metrics
    assert not (tmp_path / "kept" / "reference").exists()
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_a_loss_that_is_not_finite_stops_within_a_step(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match="nothing was committed"):
        run(job("sft", tiny, tmp_path, lr=1e30, max_grad_norm=0, warmup=0, epochs=4, save_steps=1))


def test_spoiled_weights_stop_at_the_first_step(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def load(*args: Any, **kwargs: Any) -> Any:
        model = load_model(*args, **kwargs)
        with torch.no_grad():
            model.model.norm.weight[0] = math.nan
        return model

    monkeypatch.setattr(loop, "load_model", load)
    seen = Recorder()
    with pytest.raises(NotFinite, match="step 1 of"):
        run(replace(job("sft", tiny, tmp_path), emit=seen))
    assert not [e for e in seen.events if isinstance(e, Metric)]


def test_running_out_of_memory_is_said_with_what_helps(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainers.PlannedSft, "loss_of_pass", forward)
    with pytest.raises(EnvironmentFault, match="with 4 rows per pass") as caught:
        run(job("sft", tiny, tmp_path))
    assert "micro_batch=2" in str(caught.value.hint)


def test_a_run_ends_with_the_signal_that_stopped_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, error, code in ((signal.SIGTERM, Preempted, 75), (signal.SIGINT, Interrupted, 130)):
        scratch = tmp_path / str(int(number))
        with stopped_after(monkeypatch, 1, number) as emit, pytest.raises(error) as caught:
            run(replace(job("sft", tiny, scratch), emit=emit))
        if error is Preempted:
            assert "the checkpoint of step 2 of 6 is saved" in caught.value.message
        assert caught.value.exit_code == code
        assert checkpoint.newest(scratch).step == 2
        assert not (scratch / "kept" / "final").exists()


def test_a_signal_while_the_reference_reads_ends_the_run_before_its_first_step(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = scoring.read_predicted
    monkeypatch.setattr(scoring, "read_predicted", lambda *args: asked.append(1) or read(*args))
    with stopped_after(monkeypatch, None) as emit, pytest.raises(Preempted, match="no step was made yet"):
        run(replace(job("dpo", tiny, tmp_path), emit=emit))
    assert not asked
    assert checkpoint.newest(tmp_path).path is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 0"),
    ],
)
def test_a_full_disk_is_called_one_whoever_meets_it(
    error: Exception, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(loop, "save_model", save)
    with pytest.raises(EnvironmentFault, match="no space left"):
        run(job("sft", tiny, tmp_path))


ADAPTED = {"lora": True, "lora_dropout": 0.3}


@pytest.mark.parametrize(
    ("task", "stop", "changes"),
    [
        ("sft", 1, {}), ("dpo", 4, {}), ("sft", 2, ADAPTED), pytest.param("sft", 3, {}, marks=pytest.mark.slow),
        pytest.param("sft", 4, {"dtype": "bf16"}, marks=pytest.mark.slow),
        pytest.param("dpo", 1, {}, marks=pytest.mark.slow), pytest.param("dpo", 3, ADAPTED, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_resuming_equals_running_through(
    task: str, stop: int, changes: dict[str, Any], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(job(task, tiny, tmp_path / "whole", test=3, **changes))
    cut = tmp_path / "cut"
    with stopped_after(monkeypatch, stop - 1) as emit, pytest.raises(Preempted):
        run(replace(job(task, tiny, cut, test=3, **changes), emit=emit))
    assert checkpoint.newest(cut).step == stop
    known = cut / "kept" / "reference" if task == "dpo" else None
    resumed = run(replace(job(task, tiny, cut, test=3, **changes), reference=known))
    assert resumed.text == whole.text
    assert resumed.weights == whole.weights


def test_without_the_reference_s_word_dpo_starts_anew(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(job("dpo", tiny, tmp_path / "whole"))
    with stopped_after(monkeypatch, 1) as emit, pytest.raises(Preempted):
        run(replace(job("dpo", tiny, tmp_path / "cut"), emit=emit))
    seen = Recorder()
    again = run(replace(job("dpo", tiny, tmp_path / "cut"), emit=seen))
    assert "the reference's log-probabilities are gone: training starts anew" in seen.texts()
    assert (again.text, again.weights) == (whole.text, whole.weights)


def test_resuming_with_other_forward_passes_goes_on_from_the_same_row(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(job("sft", tiny, tmp_path / "whole")).metrics
    with stopped_after(monkeypatch, 1) as emit, pytest.raises(Preempted):
        run(replace(job("sft", tiny, tmp_path / "cut"), emit=emit))
    resumed = run(job("sft", tiny, tmp_path / "cut", micro_batch=2)).metrics
    for left, right in zip(whole, resumed, strict=True):
        assert left == pytest.approx(right, abs=1e-5)


def test_a_damaged_checkpoint_is_passed_over_by_name(tiny: Path, tmp_path: Path) -> None:
    whole = run(job("sft", tiny, tmp_path / "whole"))
    cut = tmp_path / "cut"

    def die(event: Any) -> None:
        if isinstance(event, Metric) and event.step == 4:
            raise NotFinite("for the test")

    with pytest.raises(NotFinite):
        run(replace(job("sft", tiny, cut, save_steps=1), emit=die))
    newest = cut / "checkpoint-3"
    assert checkpoint.newest(cut).path == newest
    data = bytearray((newest / "optimizer.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "optimizer.pt").write_bytes(data)
    seen = Recorder()
    resumed = run(replace(job("sft", tiny, cut), emit=seen))
    assert "checkpoint-3 has a damaged optimizer.pt; it is passed over" in seen.texts()
    assert "resuming at step 2 of 6" in seen.texts()
    assert (resumed.text, resumed.weights) == (whole.text, whole.weights)


def test_a_run_for_a_checkpoint_alone_delivers_no_model(tiny: Path, tmp_path: Path) -> None:
    names: list[str] = []
    work = replace(job("sft", tiny, tmp_path), stop_at=2, deliver=lambda name, folder: names.append(name))
    loop.run(work)
    assert checkpoint.newest(tmp_path).step == 2
    assert names == []


def test_epochs_are_kept_between_the_first_and_the_last(tiny: Path, tmp_path: Path) -> None:
    kept: list[tuple[str, int]] = []
    work = job("sft", tiny, tmp_path, epochs=2.5, keep_epochs=True)
    final = run(replace(work, deliver=lambda name, at: kept.append((name, Outcome(at).metrics[-1]["step"]))))
    assert kept == [("epoch1", 3), ("epoch2", 6), ("final", 8)]
    folders = [Outcome(tmp_path / "kept" / name) for name in ("epoch1", "epoch2")]
    assert len({one.weights for one in (*folders, final)}) == 3
    assert load_model(folders[0].folder).config.model_type == "mistral"


def test_metrics_hold_reproducible_numbers_and_timing_the_others(tiny: Path, tmp_path: Path) -> None:
    first = (final := run(job("sft", tiny, tmp_path))).metrics[0]
    assert {"step", "epoch", "loss", "lr", "grad_norm", "entropy", "token_accuracy"} <= set(first)
    assert not {name for name in first if "second" in name or "memory" in name or "mfu" in name}
    assert first["lr"] == 0.0
    lines = (final.folder / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    timing = [json.loads(line) for line in lines]
    assert [row["step"] for row in timing] == [1, 2, 3, 4, 5, 6]
    assert all(row["tokens"] > 0 and row["seconds"] > 0 for row in timing)


def test_nothing_is_said_on_the_terminal(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(job("dpo", tiny, tmp_path, test=3))
    assert capfd.readouterr() == ("", "")
