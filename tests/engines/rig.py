"""What the invariance tests share: rows of many lengths, an optimiser step computed as training computes it but with no
trainer around it, and the distance between two such steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import torch

from zephyrctl.losses import LossSpec, make_loss
from zephyrctl.training.crew import Crew
from zephyrctl.training.job import Job
from zephyrctl.training.logprobs import read_inside
from zephyrctl.training.plan import Plan, make_plan
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.token_rows import PairRows, PairTokens, SftRows, SftTokens
from zephyrctl.training.trainers import Feed, PlannedDpo, PlannedSft

PAD = 3
VOCABULARY = 256
"""Token ids stay below it; every model here has at least as many."""


class Settings(TrainingConfig):
    """Settings of a stage that trains."""

    stage: ClassVar[str] = "sft"


class SftAlone(PlannedSft):
    """The loss of SFT as the trainer has it, without the trainer."""

    compute_loss_context_manager = staticmethod(nullcontext)

    def __init__(self, feed: Feed) -> None:
        self.feed, self._sums, self._weight = feed, {}, 1.0


class DpoAlone(PlannedDpo):
    """The loss of DPO as the trainer has it, without the trainer."""

    compute_loss_context_manager = staticmethod(nullcontext)

    def __init__(self, feed: Feed) -> None:
        self.feed, self._sums, self._weight = feed, {}, 1.0


@dataclass(frozen=True)
class OneStep:
    """What an optimiser step is made of: its loss, and the gradient of every weight by name."""

    loss: float
    gradients: dict[str, Any]

    def apart(self, other: OneStep) -> tuple[float, float]:
        """How far the losses lie apart, and the gradients: their largest difference as a share of the largest gradient.
        NaN where anything is not a number, so that no comparison with a bound holds."""
        assert self.gradients.keys() == other.gradients.keys()
        largest = torch.stack([g.abs().max() for g in self.gradients.values()]).max()
        assert largest > 0, "no weight has a gradient: nothing is compared"
        differences = [(g - other.gradients[name]).abs().max() for name, g in self.gradients.items()]
        return abs(self.loss - other.loss), float(torch.stack(differences).max() / largest)


def readable(model: Any) -> Any:
    """The model as training has it: it can read its own logits."""
    read_inside(model)
    return model


Draw = Callable[[int], list[int]]
"""Gives that many token ids, others every time."""


def at_random(seed: int = 0) -> Draw:
    """Ids that are no special tokens, with nothing to learn from."""
    made = torch.Generator().manual_seed(seed)
    return lambda count: torch.randint(4, VOCABULARY, (count,), generator=made).tolist()


def from_corpus(folder: Path) -> Draw:
    """Ids of what the sandbox base was trained on, as the tokenizer of its folder has them."""
    from transformers import AutoTokenizer

    from zephyrctl.sandbox.corpus import documents

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    texts = (document.text for document in documents(100, seed=0))
    ids = chain.from_iterable(tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return lambda wanted: list(islice(ids, wanted))


def dialogues(number: int = 12, *, longest: int = 40, draw: Draw | None = None) -> SftRows:
    """Dialogues of many lengths, with several answers each where they are long enough."""
    draw = draw or at_random()
    rows = SftRows()
    for row in range(number):
        ids = draw(5 + (7 * row) % (longest - 4))
        rows.append(SftTokens(ids, [token if place % 11 > 3 else -100 for place, token in enumerate(ids)]))
    return rows


def pairs(number: int = 9, *, draw: Draw | None = None) -> PairRows:
    """Pairs of many lengths; now the chosen answer is the longer one, now the rejected one."""
    draw = draw or at_random()
    return PairRows(
        PairTokens(draw(3 + row % 5), draw(2 + (5 * row) % 17), draw(1 + (7 * row) % 13))
        for row in range(number)
    )


def one_step(
    model: Any,
    rows: Any,
    *,
    micro: int = 99,
    world: int = 1,
    flat: bool = False,
    loss: LossSpec | None = None,
    reference: tuple[list[float], list[float]] | None = None,
) -> OneStep:
    """A step over all `rows` as one global batch: `micro` rows per pass of each of `world` processes, whose gradients
    are averaged as DDP does."""
    plan = Plan(len(rows), len(rows), min(micro, len(rows)), 1, 0, "constant", 1e-3, 0)
    model.zero_grad(set_to_none=True)
    total = 0.0
    for rank in range(world):
        made = None if loss is None else make_loss(loss)
        feed = Feed(rows, plan, PAD, Crew(rank, world), flat=flat, loss=made, reference=reference)
        trainer: Any = SftAlone(feed) if loss is None else DpoAlone(feed)
        for one in feed.passes().step(range(len(rows))):
            part = trainer.compute_loss(model, feed[one]) / world
            part.backward()
            total += float(part.detach())
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    return OneStep(total, gradients)


def make_job(task: str, init: Path, scratch: Path, *, train: Any = None, **changes: Any) -> Job:
    """A run over dialogues or pairs."""
    settings = {"lr": 1e-3, "batch_size": 8, "dtype": "fp32", "micro_batch": 4, "warmup": 0.0, **changes}
    config = Settings(**settings)
    rows = train if train is not None else dialogues() if task == "sft" else pairs()
    plan = make_plan(
        len(rows), batch=config.batch_size, micro=config.rows_per_pass(), epochs=config.epochs,
        max_steps=config.max_steps, warmup=config.warmup, scheduler=config.scheduler, lr=config.lr, seed=config.seed,
    )  # fmt: skip
    empty = SftRows() if task == "sft" else PairRows()
    loss = LossSpec() if task == "dpo" else None
    return Job(task, config, init, rows, empty, plan, scratch, loss=loss, base=("start", "sha256:0"))


def report(what: str, *numbers: float, bound: float) -> None:
    """Prints what was measured beside what is allowed, and fails unless every number is within it."""
    print(f"{what}: {', '.join(f'{n:.2e}' for n in numbers)} (allowed {bound:g})")
    assert numbers
    assert all(n <= bound for n in numbers)


def plain_rows(rows: Sequence[Any]) -> list[dict[str, list[int]]]:
    """Token rows as the columns that TRL's collators read."""
    if isinstance(rows[0], PairTokens):
        return [{k: getattr(r, k) for k in ("prompt_ids", "chosen_ids", "rejected_ids")} for r in rows]
    return [{"input_ids": r.input_ids, "labels": r.labels} for r in rows]
