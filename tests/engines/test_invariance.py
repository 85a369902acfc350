"""What must not change a result does not: each test prints how far two ways of computing the same thing lie apart, and
fails unless that is within the bound. Float32 on a CPU, unless a test says otherwise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
import torch

from rig import PAD, VOCABULARY, OneStep, dialogues, from_corpus, make_job, one_step, pairs, readable, report
from zephyrctl.losses import LossSpec, PairLogprobs, make_loss
from zephyrctl.training import loop
from zephyrctl.training.batches import pair_sequences, tensors
from zephyrctl.training.forward import read_predicted, sums_by_owner
from zephyrctl.training.locate import sandbox_base
from zephyrctl.training.model import load_model
from zephyrctl.training.packing import PackedRows, pack_rows
from zephyrctl.training.scoring import Scorer
from zephyrctl.training.token_rows import PairRows, SftRows

BOUND = 1e-5


@pytest.fixture
def new_job(tiny: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs of the tiny model, each in a folder of its own."""
    folders = (tmp_path / str(number) for number in count())
    return lambda task, **changes: make_job(task, tiny, next(folders), **changes)


@dataclass(frozen=True)
class Subject:
    """A model and rows for it."""

    model: Any
    dialogues: SftRows
    pairs: PairRows


@pytest.fixture(scope="module", params=["tiny", "sandbox"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """A random model with random rows, and one that has learnt something with what it learnt from.

    The latter computes in float64: its gradients in float32 lie 2e-5 from those in float64 whatever the layout is, so
    that only more digits can tell a mistake of 1e-5 from rounding.
    """
    if request.param == "tiny":
        return Subject(readable(load_model(request.getfixturevalue("tiny"))), dialogues(), pairs())
    draw = from_corpus(sandbox_base())
    model = readable(load_model(sandbox_base()).double())
    return Subject(model, dialogues(draw=draw), pairs(draw=draw))


def layouts(model: Any, rows: SftRows) -> dict[str, OneStep]:
    """The same dialogues in every layout."""
    best, wrapped = pack_rows(rows, 64), pack_rows(rows, 10_000, "wrapped")
    assert 1 == len(wrapped) < len(best) < len(rows)
    return {
        "alone": one_step(model, rows, micro=1),
        "padded": one_step(model, rows),
        "flat": one_step(model, rows, flat=True),
        "packed": one_step(model, best, micro=1),
        "packed and padded": one_step(model, best),
        "packed and flat": one_step(model, best, flat=True),
        "end to end": one_step(model, wrapped),
    }


def test_packed_is_unpacked_is_padded_is_flat(subject: Subject) -> None:
    found = layouts(subject.model, subject.dialogues)
    alone = found.pop("alone")
    for name, one in found.items():
        report(f"{name}: loss, gradients", *alone.apart(one), bound=BOUND)


def test_accumulated_and_shared_is_neither(subject: Subject) -> None:
    model, rows = subject.model, subject.dialogues
    whole = one_step(model, rows)
    for micro, world in ((1, 1), (5, 1), (2, 2), (1, 3), (3, 4), (20, 2), (1, 16)):
        one = one_step(model, rows, micro=micro, world=world)
        report(f"SFT, {micro} rows x {world} processes: loss, gradients", *whole.apart(one), bound=BOUND)
    spec, rows = LossSpec(), subject.pairs
    reference = said(model, rows)
    whole = one_step(model, rows, loss=spec, reference=reference)
    for micro, world, flat in ((1, 1, False), (4, 1, True), (2, 2, False), (3, 2, True)):
        one = one_step(model, rows, micro=micro, world=world, flat=flat, loss=spec, reference=reference)
        layout = "flat" if flat else "padded"
        report(
            f"DPO, {micro} pairs x {world} processes, {layout}: loss, gradients",
            *whole.apart(one),
            bound=BOUND,
        )


def said(model: Any, rows: Any, **changes: Any) -> tuple[list[float], list[float]]:
    """What a model says of pairs, as the reference does."""
    settings = {
        "pad": PAD,
        "size": 4,
        "flat": False,
        "autocast": nullcontext,
        "device": "cpu",
        **changes,
    }
    return Scorer(model, **settings).pairs(rows)


def test_what_is_measured_can_be_seen(subject: Subject) -> None:
    # rows that look at what lies before them in a pack are far beyond the bound
    model, rows = subject.model, subject.dialogues
    packs = pack_rows(rows, 64)

    class Leaking(PackedRows):
        def _pack(self, pack: Any) -> Any:
            found = super()._pack(pack)
            return replace(found, seq_lengths=[sum(found.seq_lengths)])

    leaking = one_step(model, Leaking(packs.rows, packs.plan))
    loss, gradients = one_step(model, packs).apart(leaking)
    print(f"rows that see each other: loss {loss:.1e}, gradients {gradients:.1e}")
    assert loss > 100 * BOUND
    assert gradients > 100 * BOUND
    spoilt = OneStep(math.nan, leaking.gradients)
    with pytest.raises(AssertionError):
        report("not a number", *spoilt.apart(leaking), bound=BOUND)


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        *product(("llama", "qwen3", "gemma3_text", "mistral", "olmo3"), ("sdpa", "eager")),
        ("gemma2", "eager"),  # transformers has nothing else for it on a CPU
    ],
)
def test_models_of_every_shape_keep_packed_rows_apart(kind: str, attention: str) -> None:
    found = layouts(shaped(kind, attention), dialogues())
    alone = found.pop("alone")
    worst = [max(numbers) for numbers in zip(*(alone.apart(one) for one in found.values()), strict=True)]
    report(f"{kind}, {attention}: loss, gradients", *worst, bound=BOUND)


def shaped(kind: str, attention: str) -> Any:
    """A random model of a family, of two layers; where the family has windows, narrower than the rows are long."""
    from transformers import AutoConfig, AutoModelForCausalLM

    mixed = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    extra: dict[str, Any] = {
        "mistral": {"sliding_window": 8},
        "gemma2": {"query_pre_attn_scalar": 16, **mixed},
        "gemma3_text": {"query_pre_attn_scalar": 16, **mixed},
        "olmo3": mixed,
    }.get(kind, {})  # fmt: skip
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, pad_token_id=PAD, bos_token_id=0,
        eos_token_id=1, **extra,
    )  # fmt: skip
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    assert model.config._attn_implementation == attention
    with torch.no_grad():
        for parameter in model.parameters():  # fresh weights are so small that attention is next to uniform
            if parameter.dim() > 1:
                parameter.mul_(5)
    return readable(model)


def test_step_0_of_dpo_is_ln_2_with_the_reference_in_the_same_batch(subject: Subject) -> None:
    # in every layout, and exactly: what is subtracted is the same sum of the same numbers
    for flat in (False, True):
        made = pair_sequences(list(subject.pairs))
        batch = tensors(made, pad=PAD, flat=flat)
        sums = [
            sums_by_owner(read_predicted(subject.model, batch).logprobs, batch["owner"], len(made)).detach()
            for _ in ("policy", "reference")
        ]
        counts = torch.tensor([float(len(s.predicted)) for s in made])
        half = len(made) // 2
        policy, known = sums
        lone = PairLogprobs(
            policy[:half], policy[half:], known[:half], known[half:], counts[:half], counts[half:]
        )
        worst = float((make_loss(LossSpec())(lone) - math.log(2)).abs().max())
        report(f"loss of every pair from ln 2, {'flat' if flat else 'padded'}", worst, bound=1e-6)


def test_step_0_of_dpo_is_ln_2_with_a_cached_reference(subject: Subject) -> None:
    model, rows = subject.model, subject.pairs
    for size, flat in ((1, False), (4, False), (9, True)):
        reference = said(model, rows, size=size, flat=flat)
        for micro in (1, 9):
            loss = one_step(model, rows, micro=micro, loss=LossSpec(), reference=reference).loss
            what = (
                f"loss from ln 2, reference {size} pairs at a time{' flat' if flat else ''}, policy {micro}"
            )
            report(what, abs(loss - math.log(2)), bound=1e-4)


def test_scores_do_not_depend_on_how_rows_are_scored_together(subject: Subject) -> None:
    one_by_one = said(subject.model, subject.pairs, size=1)
    together = said(subject.model, subject.pairs, size=9, flat=True)
    apart = [abs(a - b) for x, y in zip(one_by_one, together, strict=True) for a, b in zip(x, y, strict=True)]
    report("summed log-probabilities, alone and flat", max(apart), bound=1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_of_dpo_begins_at_ln_2(dtype: str, new_job: Callable[..., Any]) -> None:
    job = new_job("dpo", dtype=dtype, max_steps=1)
    loop.run(job)
    first = first_loss(job)
    report(
        f"{dtype}, reference asked in the run: loss from ln 2",
        abs(first - math.log(2)),
        bound=bound_of(dtype),
    )
    known = job.scratch / "kept" / "reference"
    again = replace(new_job("dpo", dtype=dtype, max_steps=1, micro_batch=1), reference=known, verify_ref=3)
    loop.run(again)
    first = first_loss(again)
    report(
        f"{dtype}, reference from disk, other passes: loss from ln 2",
        abs(first - math.log(2)),
        bound=bound_of(dtype),
    )


def bound_of(dtype: str) -> float:
    return 1e-4 if dtype == "fp32" else 1e-2


def first_loss(job: Any) -> float:
    """The loss of a run's first step."""
    text = (job.scratch / "kept" / "final" / "metrics.jsonl").read_text(encoding="utf-8")
    return float(json.loads(text.splitlines()[0])["loss"])


@pytest.mark.parametrize(
    "changes", [{}, {"dtype": "bf16"}, {"lora": True, "lr": 1e-2}], ids=["fp32", "bf16", "lora"]
)
def test_saved_and_reloaded_is_live(
    changes: dict[str, Any], tiny: Path, new_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    seen: dict[str, Any] = {}
    ids = torch.tensor([row.input_ids[:5] for row in dialogues()])
    kind = torch.bfloat16 if changes.get("dtype") == "bf16" else torch.float32

    def save(model: Any, *args: Any, **kwargs: Any) -> None:
        seen["logits"] = live_logits(model, kind, ids)
        real(model, *args, **kwargs)

    real = loop.save_model
    monkeypatch.setattr(loop, "save_model", save)
    job = new_job("sft", max_steps=3, **changes)
    loop.run(job)
    folder = job.scratch / "kept" / "final"
    reloaded = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto")
    assert reloaded.dtype == kind
    found = plain_logits(reloaded, ids)
    moved = float((found - plain_logits(load_model(tiny).to(kind), ids)).abs().max())
    assert moved > 1e-2, "the run changed nothing: what is reloaded could be the start"
    apart = float((found - seen["logits"]).abs().max())
    # an adapter is added to the weights when it is saved, and beside them while it is live
    report("saved and reloaded, logits", apart, bound=BOUND if "lora" in changes else 0.0)


def live_logits(model: Any, kind: Any, ids: Any) -> Any:
    """The logits of a model in training as it is: with its adapter, or with its weights rounded to a dtype."""
    was = model.training
    kept = [parameter.data for parameter in model.parameters()]
    if not hasattr(model, "peft_config"):
        for parameter in model.parameters():  # and no buffer: a position's angle is never rounded
            parameter.data = parameter.data.to(kind)
    found = plain_logits(model, ids)
    for parameter, value in zip(model.parameters(), kept, strict=True):
        parameter.data = value
    model.train(was)
    return found


def plain_logits(model: Any, ids: Any) -> Any:
    """Logits without the autocast that a trainer wraps around a model."""
    inner = model if hasattr(model, "peft_config") else type(model).forward
    with torch.no_grad():
        model.eval()
        out = inner(input_ids=ids) if inner is model else inner(model, input_ids=ids)
    return out.logits.float()
