"""What TRL computes from the same ids, computed by TRL itself: its log-probabilities, its losses, its metrics, its
weights after some steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler

from rig import PAD, dialogues, make_job, pairs, plain_rows, readable, report
from zephyrctl.libraries import quiet
from zephyrctl.training import loop
from zephyrctl.training.batches import dialogue_sequences, pair_sequences, tensors
from zephyrctl.training.forward import read_predicted
from zephyrctl.training.model import load_model
from zephyrctl.training.reference import read_reference

BOUND = 1e-5
STEPS = 4


@pytest.fixture
def new_job(tiny: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs of the tiny model, each in a folder of its own."""
    folders = (tmp_path / str(number) for number in count())
    return lambda task, **changes: make_job(task, tiny, next(folders), **changes)


def real_trainer(task: str, job: Any) -> Any:
    """TRL's own trainer, fed with the rows of the job in the order of its plan. Only the order is not TRL's, and for
    DPO that ids are given, which TRL would make of text."""
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback

    rows = [job.train[row] for batch in job.plan.batches(0) for row in batch]
    extra = {"dataset_kwargs": {"skip_prepare_dataset": True}} if task == "sft" else {"beta": job.loss.beta}
    arguments = (trl.SFTConfig if task == "sft" else trl.DPOConfig)(
        output_dir=str(job.scratch / "trl"), use_cpu=True, bf16=False, max_steps=job.plan.steps, max_length=None,
        per_device_train_batch_size=job.plan.batch, learning_rate=job.config.lr, warmup_steps=job.plan.warmup_steps,
        lr_scheduler_type=job.config.scheduler, logging_steps=1, report_to="none", disable_tqdm=True,
        save_strategy="no", remove_unused_columns=False, **extra,
    )  # fmt: skip

    class Real(trl.SFTTrainer if task == "sft" else trl.DPOTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset if task == "dpo" else super()._prepare_dataset(dataset, *args, **kwargs)

    with quiet():
        trainer = Real(
            model=load_model(job.init), args=arguments, processing_class=AutoTokenizer.from_pretrained(str(job.init)),
            train_dataset=Dataset.from_list(plain_rows(rows)),
            **({"ref_model": load_model(job.init)} if task == "dpo" else {}),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
    return trainer


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_a_run_is_that_of_trl(task: str, new_job: Callable[..., Any]) -> None:
    rows = dialogues(4 * STEPS) if task == "sft" else pairs(4 * STEPS)
    job = new_job(task, train=rows, max_steps=STEPS, batch_size=4, micro_batch=3, lr=3e-3, warmup=0.25)
    theirs = real_trainer(task, job)
    with quiet():
        theirs.train()
    told = [row for row in theirs.state.log_history if "grad_norm" in row]
    loop.run(job)
    text = (job.scratch / "kept" / "final" / "metrics.jsonl").read_text(encoding="utf-8")
    ours = [json.loads(line) for line in text.splitlines()]
    assert len(told) == len(ours) == STEPS
    names = {"loss": "loss", "lr": "learning_rate"}
    if task == "sft":
        names |= {"entropy": "entropy", "token_accuracy": "mean_token_accuracy"}
    else:
        names |= {name: name for name in ours[0] if name.startswith(("rewards/", "logps/"))}
    for mine, name in names.items():
        apart = [abs(a[mine] - b[name]) / max(1.0, abs(b[name])) for a, b in zip(ours, told, strict=True)]
        report(f"{task} {mine} of {STEPS} steps, from TRL's", max(apart), bound=BOUND)
    apart = [abs(a["grad_norm"] - b["grad_norm"]) / b["grad_norm"] for a, b in zip(ours, told, strict=True)]
    report(f"{task} grad_norm of {STEPS} steps, as a share of TRL's", max(apart), bound=BOUND)
    assert abs(ours[-1]["loss"] - ours[0]["loss"]) > 1e-3, "nothing was learnt: all steps are the first one"
    if task == "dpo":
        report("loss of TRL's first step from ln 2", abs(told[0]["loss"] - math.log(2)), bound=BOUND)
    mine, other = load_model(job.scratch / "kept" / "final"), theirs.model
    start = load_model(job.init)
    gaps = [
        float((p - q).detach().abs().max())
        for p, q in zip(mine.parameters(), other.parameters(), strict=True)
    ]
    moved = max(
        float((p - q).detach().abs().max())
        for p, q in zip(mine.parameters(), start.parameters(), strict=True)
    )
    # Adam divides by the root of what may be next to nothing, and so widens the last bit
    report(
        f"{task} weights after {STEPS} steps, as a share of how far they moved", max(gaps) / moved, bound=1e-2
    )


@pytest.mark.parametrize("flat", [False, True], ids=["padded", "flat"])
def test_log_probabilities_per_token_are_those_of_trl(flat: bool, new_job: Callable[..., Any]) -> None:
    for task, rows, make in (("sft", dialogues(), dialogue_sequences), ("dpo", pairs(), pair_sequences)):
        trainer = real_trainer(task, new_job(task, train=rows, max_steps=1, batch_size=4))
        theirs = trainer.data_collator(plain_rows(list(rows)))
        labels = theirs.get("labels")
        if labels is None:
            labels = theirs["input_ids"].masked_fill(theirs["completion_mask"] == 0, -100)
        model = trainer.model.eval()
        batch = tensors(make(list(rows)), pad=PAD, flat=flat)
        with torch.no_grad():
            out = model(
                input_ids=theirs["input_ids"], attention_mask=theirs["attention_mask"], labels=labels,
                fused_lm_head=True,
            )  # fmt: skip
            ours = read_predicted(readable(model), batch)
        wanted = labels[:, 1:] != -100
        assert int(wanted.sum()) == len(ours.logprobs) > 50
        report(
            f"{task} log-probabilities per token",
            float((ours.logprobs - out.log_probs[wanted]).abs().max()),
            bound=BOUND,
        )
        report(
            f"{task} entropy per token", float((ours.entropy - out.entropy[wanted]).abs().max()), bound=BOUND
        )
        assert torch.equal(ours.top, out.is_top1[wanted])


def test_the_reference_says_what_that_of_trl_says(new_job: Callable[..., Any]) -> None:
    job = new_job("dpo", train=pairs(), max_steps=1)
    trainer = real_trainer("dpo", job)
    with quiet():
        theirs = trainer.compute_ref_log_probs(
            trainer.ref_model, trainer.data_collator(plain_rows(list(pairs())))
        )
    loop.run(job)
    ours = read_reference(job.scratch / "kept" / "reference").train
    apart = [
        abs(a - float(b)) / max(1.0, abs(a))
        for x, y in zip(ours, theirs, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    assert len(apart) == 2 * len(pairs())
    report("summed log-probabilities of the reference, as a share of them", max(apart), bound=BOUND)
