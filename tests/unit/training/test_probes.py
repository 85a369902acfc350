"""Held-out numbers: those of a plain forward pass, the same on any number of processes, and a KL that is one."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zephyrctl.losses import LossSpec, make_loss
from zephyrctl.training.crew import Crew
from zephyrctl.training.journal import Journal
from zephyrctl.training.logprobs import read_inside
from zephyrctl.training.probes import DialogueProbe, PairProbe, SampleProbe, dialogue_prompts
from zephyrctl.training.sampling import _draw, draw_answers
from zephyrctl.training.scoring import Scorer
from zephyrctl.training.token_rows import PairTokens, SftTokens

EOS, PAD = 1, 3
STOPS = {EOS}


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    read_inside(model)
    return model


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return load(tiny)


def scorer(model: Any, *, size: int = 3, crew: Crew | None = None) -> Scorer:
    return Scorer(model, PAD, size, False, contextlib.nullcontext, torch.device("cpu"), crew or Crew())


def ids(number: int, length: int) -> list[int]:
    return [4 + (number * 31 + place * 17) % 200 for place in range(length)]


def dialogues(count: int = 7) -> list[SftTokens]:
    made = []
    for number in range(count):
        prompt, first, second = ids(number, 5 + number), ids(number + 50, 3), ids(number + 90, 2 + number % 3)
        row = [*prompt, *first, EOS, 9, 10, *second, *([EOS] if number != 2 else [])]
        bears = [0] * len(prompt) + [1] * 4 + [0, 0] + [1] * (len(second) + (number != 2))
        made.append(SftTokens(row, [t if b else -100 for t, b in zip(row, bears, strict=True)]))
    return made


def pairs(count: int = 5) -> list[PairTokens]:
    return [
        PairTokens(ids(n, 4 + n), [*ids(n + 20, 3 + n), EOS, 8, EOS], [*ids(n + 60, 6), *([EOS] * (n % 2))])
        for n in range(count)
    ]


def plain(model: Any, row: Sequence[int]) -> Any:
    """Log-probabilities of every next token, `[len(row) - 1, vocabulary]`."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(row)])).logits[0, :-1].double().log_softmax(-1)


def test_dialogues_are_measured_as_a_plain_forward_pass_would(model: Any) -> None:
    total = hits = count = ends = 0.0
    for row in dialogues():
        found = plain(model, row.input_ids)
        wanted = [p for p, label in enumerate(row.labels) if label != -100]
        total -= sum(float(found[p - 1, row.input_ids[p]]) for p in wanted)
        hits += sum(int(found[p - 1].argmax()) == row.input_ids[p] for p in wanted)
        count += len(wanted)
        last = max(p for p in wanted if row.input_ids[p] == EOS)
        ends += int(found[last - 1].argmax()) == EOS
    scores = DialogueProbe(scorer(model), dialogues(), STOPS).measure()
    assert scores == {
        "test/loss": pytest.approx(total / count, abs=1e-5),
        "test/token_accuracy": pytest.approx(hits / count),
        "test/eos_rate": pytest.approx(ends / 7),
    }


def test_an_end_is_counted_where_the_closing_token_is_the_likeliest(tiny: Path) -> None:
    sure = load(tiny)
    sure.lm_head = torch.nn.Linear(64, sure.config.vocab_size, bias=True)
    with torch.no_grad():
        sure.lm_head.weight.zero_()
        sure.lm_head.bias.zero_()
        sure.lm_head.bias[EOS] = 9.0
    assert DialogueProbe(scorer(sure), dialogues(), STOPS).measure()["test/eos_rate"] == 1.0
    loss = make_loss(LossSpec())
    reference = ([0.0] * 5, [0.0] * 5)
    assert PairProbe(scorer(sure), pairs(), STOPS, loss, reference).measure()["test/eos_rate"] == 1.0
    with torch.no_grad():
        sure.lm_head.bias[EOS] = -9.0
    assert DialogueProbe(scorer(sure), dialogues(), STOPS).measure()["test/eos_rate"] == 0.0
    cut = [SftTokens([5, 6, 7], [-100, 6, 7])]
    assert "test/eos_rate" not in DialogueProbe(scorer(sure), cut, STOPS).measure(), "no answer has its end"


def test_pairs_are_measured_as_a_plain_forward_pass_would(model: Any) -> None:
    def logp(prompt: list[int], answer: list[int]) -> float:
        found = plain(model, prompt + answer)
        return sum(float(found[len(prompt) + i - 1, token]) for i, token in enumerate(answer))

    chosen = [logp(p.prompt_ids, p.chosen_ids) for p in pairs()]
    rejected = [logp(p.prompt_ids, p.rejected_ids) for p in pairs()]
    reference = ([v + 3.0 * (i - 2) for i, v in enumerate(chosen)], [v + 1.0 for v in rejected])
    probe = PairProbe(scorer(model), pairs(), STOPS, make_loss(LossSpec(beta=0.2)), reference)
    scores = probe.measure()
    margins = [0.2 * ((c - a) - (r - b)) for c, r, a, b in zip(chosen, rejected, *reference, strict=True)]
    assert scores["test/loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 5, abs=1e-5)
    assert scores["test/accuracy"] == sum(m > 0 for m in margins) / 5
    assert scores["test/margin"] == pytest.approx(sum(margins) / 5, abs=1e-5)
    assert scores["test/logps/chosen"] == pytest.approx(sum(chosen) / 5, abs=1e-4)
    assert scores["test/logps/rejected"] == pytest.approx(sum(rejected) / 5, abs=1e-4)
    assert scores["test/chosen_tokens"] == sum(len(p.chosen_ids) for p in pairs()) / 5
    free = replace(probe, loss=make_loss(LossSpec(names=("simpo",))), reference=None).measure()
    assert math.isfinite(free["test/loss"])


@dataclass(frozen=True)
class Together(Crew):
    """A crew of threads of one process, which meet at a barrier."""

    barrier: Any = field(default=None)
    told_by: dict[int, list[float]] = field(default_factory=dict)

    def total(self, values: Sequence[float]) -> list[float]:
        self.told_by[self.rank] = list(values)
        self.barrier.wait(30)
        found = [sum(column) for column in zip(*self.told_by.values(), strict=True)]
        self.barrier.wait(30)
        return found


def on_all(tiny: Path, world: int, measure: Any) -> list[Any]:
    """What `measure(scorer)` gives on every process."""
    barrier, shared = threading.Barrier(world), {}
    found: list[Any] = [None] * world
    models = [load(tiny) for _ in range(world)]

    def work(rank: int) -> None:
        crew = Together(rank, world, barrier=barrier, told_by=shared)
        found[rank] = measure(scorer(models[rank], crew=crew))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_every_process_gets_the_numbers_of_one(tiny: Path, world: int) -> None:
    def measure(made: Scorer) -> dict[str, float]:
        loss = make_loss(LossSpec())
        samples = SampleProbe(made, [row.prompt_ids for row in pairs()], STOPS, 5, Journal())
        return {
            **DialogueProbe(made, dialogues(), STOPS).measure(),
            **PairProbe(made, pairs(), STOPS, loss, ([-20.0] * 5, [-20.0] * 5)).measure(),
            **samples.begin(),
            **samples.measure(),
        }

    alone = measure(scorer(load(tiny)))
    together = on_all(tiny, world, measure)
    assert all(one == together[0] for one in together)
    assert together[0] == pytest.approx(alone, abs=1e-5)


def test_the_kl_is_0_at_the_start_and_grows_with_the_distance(tiny: Path) -> None:
    moving, journal = load(tiny), Journal()
    probe = SampleProbe(scorer(moving), [ids(n, 6) for n in range(8)], STOPS, 5, journal)
    begun = probe.begin()
    scores = probe.measure()
    assert scores["test/kl"] == pytest.approx(0.0, abs=1e-9)
    assert scores == {"test/kl": scores["test/kl"], **begun}
    found = []
    for _ in range(2):
        with torch.no_grad():
            moving.model.norm.weight.mul_(1.1)
        found.append(probe.measure()["test/kl"])
    assert 0 < found[0] < found[1]
    other = SampleProbe(scorer(moving), probe.prompts, STOPS, 5, journal)
    assert other.measure()["test/kl"] == found[1], "a resumed run compares with the same answers"
    assert SampleProbe(scorer(moving), probe.prompts, STOPS, 5, Journal()).measure() == {}


def test_the_estimate_is_near_the_kl_itself(tiny: Path) -> None:
    """Against the sum over the whole vocabulary at every position of the same answers."""
    moved, journal = load(tiny), Journal()
    probe = SampleProbe(scorer(moved, size=16), [ids(n, 4) for n in range(16)], STOPS, 1, journal)
    probe.begin()
    with torch.no_grad():
        moved.model.norm.weight.mul_(1.5)
    start, exact, count = load(tiny), 0.0, 0
    for prompt, kept in zip(probe.prompts, journal.before["samples"], strict=True):
        row = [*prompt, *kept["answer"]]
        before, now = plain(start, row)[len(prompt) - 1 :], plain(moved, row)[len(prompt) - 1 :]
        exact += float((before.exp() * (before - now)).sum())
        count += len(kept["answer"])
    assert count > 500
    estimate = probe.measure()["test/kl"]
    assert estimate == pytest.approx(exact / count, rel=0.1)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.log(torch.tensor([0.6, 0.3, 0.1, 1e-9])).repeat(3000, 1)
    drawn = torch.tensor(_draw(logits, [torch.Generator().manual_seed(seed) for seed in range(3000)]))
    shares = [(drawn == token).float().mean().item() for token in range(4)]
    assert shares == pytest.approx([0.6, 0.3, 0.1, 0.0], abs=0.04)


def test_answers_depend_on_their_own_row_alone_and_leave_the_random_state(model: Any) -> None:
    prompt = ids(1, 5)
    before = torch.random.get_rng_state()

    def draw(prompts: list[list[int]], seed: int, limit: int = 1) -> list[list[int]]:
        return draw_answers(
            model, prompts, stops=STOPS, pad=PAD, limit=limit, seed=seed, device="cpu",
            autocast=contextlib.nullcontext,
        )  # fmt: skip

    assert len({draw([prompt], seed)[0][0] for seed in range(30)}) > 10, "seeds differ"
    assert torch.equal(torch.random.get_rng_state(), before)
    both = draw([prompt, ids(2, 9)], 7, limit=12)
    assert both == [draw([prompt], 7, limit=12)[0], draw([ids(2, 9)], 7, limit=12)[0]]
    assert all(1 <= len(answer) <= 12 and EOS not in answer[:-1] for answer in both)
    assert draw([], 7) == []


def test_prompts_of_dialogues() -> None:
    rows = [*dialogues(2), SftTokens([5, 6], [5, 6])]
    assert dialogue_prompts(rows) == [rows[0].input_ids[:5], rows[1].input_ids[:6]]
