"""Runs of the tiny model: what the loss is a mean of, what stops a run, and that resuming changes nothing."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import Interrupted, NotFinite, StageRejected
from zephyrctl.events import Metric, Recorder, silent
from zephyrctl.records import Message, PreferenceRow, SftRow
from zephyrctl.training import checkpoint, loop
from zephyrctl.training.journal import Journal
from zephyrctl.training.loop import Job, Trained
from zephyrctl.training.model import load_model
from zephyrctl.training.packing import pack_rows
from zephyrctl.training.plan import make_plan
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.signals import StopSignal
from zephyrctl.training.tokens import pair_tokens, sft_tokens


class Settings(TrainingConfig):
    stage = "sft"


def messages(number: int, answer: str) -> tuple[list[Message], list[Message]]:
    asked = "say " + "abc"[number % 3] * (number % 5 + 1)
    return [Message(role="user", content=asked)], [Message(role="assistant", content=answer)]


def rows(task: str, tokenizer: Any, count: int = 21) -> list[Any]:
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


def job(task: str, tiny: Path, scratch: Path, *, train: list[Any] | None = None, **changes: Any) -> Job:
    tokenizer = load_tokenizer(tiny)
    config = Settings(
        **{"lr": 1e-3, "batch_size": 8, "dtype": "fp32", "epochs": 2, "micro_batch": 4, **changes}
    )
    data = train if train is not None else rows(task, tokenizer)
    plan = make_plan(
        len(data),
        batch=config.batch_size,
        micro=config.rows_per_pass(),
        epochs=config.epochs,
        max_steps=config.max_steps,
        warmup=config.warmup,
        scheduler=config.scheduler,
        lr=config.lr,
        seed=config.seed,
    )
    beta = 0.1 if task == "dpo" else None
    return Job(
        task, config, tiny, tokenizer, data, rows(task, tokenizer)[:5], plan, scratch, silent, beta=beta
    )


def weights(model: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_weights(left: Any, right: Any) -> bool:
    import torch

    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@contextlib.contextmanager
def stopped_after(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[Any]:
    """An `emit` that behaves like a SIGTERM arriving during the step after `step`."""
    state = StopSignal()

    @contextlib.contextmanager
    def signals() -> Iterator[StopSignal]:
        yield state

    def emit(event: Any) -> None:
        if isinstance(event, Metric) and event.step == step:
            state.number = 15

    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_signal", signals)
        yield emit


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_the_loss_is_the_mean_over_the_global_batch_however_it_is_split(
    task: str, tiny: Path, tmp_path: Path
) -> None:
    runs = [loop.run(job(task, tiny, tmp_path / str(m), micro_batch=m)) for m in (8, 1, 2, 3)]
    steps = 2 * math.ceil(21 / 8)
    assert sum("loss" in row for row in runs[0].journal.metrics) == steps
    for other in runs[1:]:
        for left, right in zip(runs[0].journal.metrics, other.journal.metrics, strict=True):
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
    first = loop.run(work).journal.metrics[0]
    assert first["loss"] == pytest.approx(total / count, abs=1e-5)


def test_packed_rows_give_the_loss_of_rows_apart(tiny: Path, tmp_path: Path) -> None:
    apart = rows("sft", load_tokenizer(tiny))
    packed = pack_rows(apart, 150)
    assert len(packed) < len(apart)
    settings = {"batch_size": 100, "micro_batch": 4, "epochs": 4}
    left = loop.run(job("sft", tiny, tmp_path / "a", train=apart, **settings)).journal.metrics
    right = loop.run(job("sft", tiny, tmp_path / "b", train=packed, **settings)).journal.metrics
    for a, b in zip(left, right, strict=True):
        for name in ("loss", "test/loss", "grad_norm"):
            assert b.get(name) == pytest.approx(a.get(name), abs=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_dpo_begins_at_ln_2_and_learns(dtype: str, tiny: Path, tmp_path: Path) -> None:
    journal = loop.run(job("dpo", tiny, tmp_path, dtype=dtype, epochs=4)).journal
    assert journal.metrics[0]["step"] == 1
    assert journal.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-5 if dtype == "fp32" else 2e-2)
    held_out = [row for row in journal.metrics if "test/loss" in row]
    assert [row["epoch"] for row in held_out] == [1, 2, 3, 4]
    assert held_out[-1]["test/loss"] < math.log(2)
    assert 0 <= held_out[-1]["test/accuracy"] <= 1
    assert set(journal.metrics[1]) == {
        "step", "epoch", "loss", "lr", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins",
        "rewards/accuracies", "logps/chosen", "logps/rejected",
    }  # fmt: skip


def test_dpo_against_another_reference_is_refused(
    tiny: Path, make_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_tiny(tmp_path / "other", seed=9)
    loads = iter([other, tiny])
    monkeypatch.setattr(loop, "load_model", lambda folder: load_model(next(loads)))
    with pytest.raises(StageRejected, match="ln 2"):
        loop.run(job("dpo", tiny, tmp_path / "s"))


def test_a_loss_that_is_not_finite_stops_within_a_step(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match="nothing was committed"):
        loop.run(job("sft", tiny, tmp_path, lr=1e30, max_grad_norm=0, warmup=0, epochs=4, save_steps=1))


@pytest.mark.parametrize("spoiled", ["nan", "inf"])
def test_spoiled_weights_stop_at_the_first_step(
    spoiled: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def load(folder: Path) -> Any:
        model = load_model(folder)
        with torch.no_grad():
            model.model.norm.weight[0] = float(spoiled)
        return model

    monkeypatch.setattr(loop, "load_model", load)
    seen = Recorder()
    with pytest.raises(NotFinite, match="step 1 of"):
        loop.run(replace(job("sft", tiny, tmp_path), emit=seen))
    assert not [e for e in seen.events if isinstance(e, Metric)]


@pytest.mark.parametrize("task", ["sft", "dpo"])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resuming_equals_running_through(
    task: str, stop: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loop.run(job(task, tiny, tmp_path / "whole"))
    with stopped_after(monkeypatch, stop - 1) as emit:
        work = job(task, tiny, tmp_path / "cut")
        if stop == 1:
            work = replace(work, config=work.config.model_copy(update={"save_steps": 1}))
            emit(Metric(task, 0))
        with pytest.raises(Interrupted) as caught:
            loop.run(replace(work, emit=emit))
        assert caught.value.exit_code == 143
    assert checkpoint.newest(tmp_path / "cut").step == stop
    resumed = loop.run(job(task, tiny, tmp_path / "cut"))
    assert resumed.journal.texts()["metrics.jsonl"] == whole.journal.texts()["metrics.jsonl"]
    assert same_weights(resumed.model, whole.model)


def test_resuming_with_other_forward_passes_goes_on_from_the_same_row(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loop.run(job("sft", tiny, tmp_path / "whole"))
    with stopped_after(monkeypatch, 1) as emit, pytest.raises(Interrupted):
        loop.run(replace(job("sft", tiny, tmp_path / "cut"), emit=emit))
    resumed = loop.run(job("sft", tiny, tmp_path / "cut", micro_batch=2))
    for left, right in zip(whole.journal.metrics, resumed.journal.metrics, strict=True):
        assert left == pytest.approx(right, abs=1e-5)


def test_a_damaged_checkpoint_is_passed_over_by_name(tiny: Path, tmp_path: Path) -> None:
    whole = loop.run(job("sft", tiny, tmp_path / "whole"))
    with pytest.raises(NotFinite):
        _die_at(4, job("sft", tiny, tmp_path / "cut", save_steps=1))
    newest = tmp_path / "cut" / "checkpoint-3"
    assert checkpoint.newest(tmp_path / "cut").path == newest
    data = bytearray((newest / "optimizer.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "optimizer.pt").write_bytes(data)
    seen = Recorder()
    resumed = loop.run(replace(job("sft", tiny, tmp_path / "cut"), emit=seen))
    assert "checkpoint-3 has a damaged optimizer.pt; it is passed over" in seen.texts()
    assert "resuming at step 2 of 6" in seen.texts()
    assert resumed.journal.metrics == whole.journal.metrics
    assert same_weights(resumed.model, whole.model)


def _die_at(step: int, work: Job) -> Trained:
    def emit(event: Any) -> None:
        if isinstance(event, Metric) and event.step == step:
            raise NotFinite("for the test")

    return loop.run(replace(work, emit=emit))


def test_epochs_are_kept_between_the_first_and_the_last(tiny: Path, tmp_path: Path) -> None:
    kept: list[tuple[int, int]] = []

    def keep(epoch: int, model: Any, journal: Journal) -> None:
        kept.append((epoch, journal.metrics[-1]["step"]))

    loop.run(replace(job("sft", tiny, tmp_path, epochs=2.5, max_steps=None), keep_epoch=keep))
    assert kept == [(1, 3), (2, 6)]


def test_metrics_hold_reproducible_numbers_and_timing_the_others(tiny: Path, tmp_path: Path) -> None:
    journal = loop.run(job("sft", tiny, tmp_path)).journal
    first = json.loads(journal.texts()["metrics.jsonl"].splitlines()[0])
    assert set(first) == {"step", "epoch", "loss", "lr", "grad_norm", "entropy", "token_accuracy"}
    assert first["lr"] == 0.0
    timing = [json.loads(line) for line in journal.texts()["timing.jsonl"].splitlines()]
    assert [row["step"] for row in timing] == [1, 2, 3, 4, 5, 6]
    assert all(row["tokens"] > 0 and row["seconds"] > 0 for row in timing)


def test_nothing_is_said_on_the_terminal(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loop.run(job("dpo", tiny, tmp_path))
    assert capfd.readouterr() == ("", "")
