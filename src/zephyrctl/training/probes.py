"""What is measured on held-out rows at the end of an epoch: loss, accuracy, margins, whether answers end, and how far
the model has moved from where it began.

Every process calls the same probe at the same time and gets the same numbers; each computes its share of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from zephyrctl.losses import PairLogprobs, PreferenceLoss
from zephyrctl.training.batches import Sequence_, dialogue_sequences, pair_sequences, tensors
from zephyrctl.training.forward import read_predicted
from zephyrctl.training.journal import Journal
from zephyrctl.training.passes import shares
from zephyrctl.training.sampling import draw_answers
from zephyrctl.training.scoring import Scorer

SAMPLED_PROMPTS = 16
SAMPLED_TOKENS = 64
_SAMPLES = "samples"


@dataclass(frozen=True)
class Looked:
    """What the model said of one sequence: log-probabilities of its wanted tokens, and whether each was the most likely
    one."""

    row: int
    sequence: Sequence_
    logprobs: list[float]
    top: list[bool]


def look(
    scorer: Scorer,
    rows: Sequence[Any],
    make: Callable[[Sequence[Any]], list[Sequence_]],
    fold: Callable[[Looked], list[float]],
    width: int,
) -> list[list[list[float]]]:
    """What `fold` makes of every sequence: `width` numbers, on every process, without gradients.

    `make` gives the sequences of some rows: one each, or of pairs those of one side and then those of the other. The
    result is by side, by row. Rows have a `length` in tokens and are read one pass at a time.
    """
    import torch

    crew = scorer.crew
    found: dict[int, list[list[float]]] = {}
    sides = 1
    scorer.model.eval()
    for one in shares([row.length for row in rows], scorer.size, rank=crew.rank, world=crew.world):
        made = make([rows[number] for number in one.rows])
        sides = len(made) // len(one.rows)
        batch = tensors(made, pad=scorer.pad, flat=scorer.flat)
        batch = {name: value.to(scorer.device) for name, value in batch.items()}
        with torch.no_grad(), scorer.autocast():
            reading = read_predicted(scorer.model, batch)
        if one.filler:
            continue
        logprobs, top, start = reading.logprobs.tolist(), reading.top.tolist(), 0
        for place, sequence in enumerate(made):
            end = start + len(sequence.predicted)
            row = one.rows[place % len(one.rows)]
            found.setdefault(row, []).append(fold(Looked(row, sequence, logprobs[start:end], top[start:end])))
            start = end
    # Every number has one place of its own that is 0 on all other processes, so the sums are exact.
    nothing = [[0.0] * width] * sides
    table = crew.total([n for row in range(len(rows)) for side in found.get(row, nothing) for n in side])
    cells = [table[start : start + width] for start in range(0, len(table), width)]
    return [cells[side::sides] for side in range(sides)]


@dataclass
class DialogueProbe:
    """Held-out dialogues: `test/loss` and `test/token_accuracy` over loss-bearing tokens, `test/eos_rate`."""

    scorer: Scorer
    rows: Sequence[Any]
    stops: Collection[int]
    """Ids of the tokens that end an answer."""

    def measure(self) -> dict[str, float]:
        """The numbers for the model as it is now; none where there are no rows."""

        def fold(one: Looked) -> list[float]:
            closing = _closed(one, _last_of(one.sequence, self.stops))
            return [math.fsum(one.logprobs), float(sum(one.top)), float(len(one.top)), *closing]

        (found,) = look(self.scorer, self.rows, dialogue_sequences, fold, 5)
        logprobs, hits, tokens, closed, closings = _sums(found, 5)
        if not tokens:
            return {}
        scores = {"test/loss": -logprobs / tokens, "test/token_accuracy": hits / tokens}
        return scores | _eos_rate(closed, closings)


@dataclass
class PairProbe:
    """Held-out pairs: `test/loss` (of the loss trained), `test/accuracy`, `test/margin`; of chosen and rejected answers
    `test/logps/…` (nats per answer) and `test/…_tokens` (mean length); `test/eos_rate` of the chosen ones.

    `reference` holds the summed log-probabilities of chosen and rejected answers before training; None for a loss that
    has no reference.
    """

    scorer: Scorer
    rows: Sequence[Any]
    stops: Collection[int]
    loss: PreferenceLoss
    reference: tuple[Sequence[float], Sequence[float]] | None

    def measure(self) -> dict[str, float]:
        """The numbers for the model as it is now; none where there are no rows."""
        import torch

        def fold(one: Looked) -> list[float]:
            return [
                math.fsum(one.logprobs),
                float(len(one.top)),
                *_closed(one, _first_of(one.sequence, self.stops)),
            ]

        if not len(self.rows):
            return {}
        chosen, rejected = look(self.scorer, self.rows, pair_sequences, fold, 4)
        columns = [
            [row[0] for row in chosen],
            [row[0] for row in rejected],
            *(self.reference or (None, None)),
        ]
        columns += [[row[1] for row in chosen], [row[1] for row in rejected]]
        pairs = PairLogprobs(*(_column(torch, values) for values in columns))
        scores = {f"test/{name}": value for name, value in self.loss.scores(pairs).items()}
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            logprobs, tokens, *_ = _sums(side, 4)
            scores[f"test/logps/{name}"] = logprobs / len(side)
            scores[f"test/{name}_tokens"] = tokens / len(side)
        return scores | _eos_rate(*_sums(chosen, 4)[2:])


@dataclass
class SampleProbe:
    """How far the model has moved, and how long its own answers are, on answers to held-out prompts.

    Before the first step the model answers `SAMPLED_PROMPTS` prompts. `measure` gives `test/kl`, the mean per token of
    KL(start || now) on those answers, and of answers drawn anew `test/answer_tokens` (mean length, at most
    `SAMPLED_TOKENS`) and `test/answers_ended` (share that ended by themselves). The KL is estimated by (r - 1) - log r
    with r = p_now / p_start of each token: unbiased, never below 0 (Schulman 2020, Approximating KL Divergence).

    For engines whose processes each hold all weights: the model is run step by step.
    """

    scorer: Scorer
    prompts: Sequence[Sequence[int]]
    stops: Collection[int]
    seed: int
    journal: Journal
    """Keeps what was drawn before the first step, for resumed runs."""

    def begin(self) -> dict[str, float]:
        """Draws answers from the model as it is before the first step; `test/answer_tokens` and `test/answers_ended` of
        them."""
        answers = self._draw()
        if answers:
            (found,) = look(self.scorer, self._rows(answers), _drawn_sequences, _padded, SAMPLED_TOKENS)
            self.journal.before[_SAMPLES] = [
                {"answer": answer, "logprobs": row[: len(answer)]}
                for answer, row in zip(answers, found, strict=True)
            ]
        return self._lengths(answers)

    def measure(self) -> dict[str, float]:
        """The numbers for the model as it is now; none where nothing was drawn before the first step."""
        kept = self.journal.before.get(_SAMPLES, [])
        if not kept:
            return {}
        answers = [row["answer"] for row in kept]

        def fold(one: Looked) -> list[float]:
            before = kept[one.row]["logprobs"]
            return [
                math.fsum(_divergence(now - then) for now, then in zip(one.logprobs, before, strict=True))
            ]

        (found,) = look(self.scorer, self._rows(answers), _drawn_sequences, fold, 1)
        total = math.fsum(row[0] for row in found)
        return {"test/kl": total / sum(map(len, answers)), **self._lengths(self._draw())}

    def _draw(self) -> list[list[int]]:
        """An answer to every prompt, the same on every process."""
        scorer, crew = self.scorer, self.scorer.crew
        scorer.model.eval()
        own = range(crew.rank, len(self._asked), crew.world)
        drawn = draw_answers(
            getattr(scorer.model, "module", scorer.model),  # DDP's wrapper talks to the others at every call
            [self._asked[number] for number in own],
            stops=self.stops,
            pad=scorer.pad,
            limit=SAMPLED_TOKENS,
            seed=self.seed,
            device=scorer.device,
            autocast=scorer.autocast,
        )
        # One more than each id, so that the zeros of those who did not draw a row, and of what is unwritten, fall out.
        table = [0.0] * (len(self._asked) * SAMPLED_TOKENS)
        for number, answer in zip(own, drawn, strict=True):
            table[number * SAMPLED_TOKENS : number * SAMPLED_TOKENS + len(answer)] = [t + 1.0 for t in answer]
        table = crew.total(table)
        cells = [table[start : start + SAMPLED_TOKENS] for start in range(0, len(table), SAMPLED_TOKENS)]
        return [[int(cell) - 1 for cell in row if cell] for row in cells]

    @property
    def _asked(self) -> list[list[int]]:
        return [[int(token) for token in prompt] for prompt in self.prompts[:SAMPLED_PROMPTS]]

    def _rows(self, answers: Sequence[Sequence[int]]) -> list[_Drawn]:
        return [_Drawn([*p, *a], len(p)) for p, a in zip(self._asked, answers, strict=True)]

    def _lengths(self, answers: Sequence[Sequence[int]]) -> dict[str, float]:
        if not answers:
            return {}
        return {
            "test/answer_tokens": sum(map(len, answers)) / len(answers),
            "test/answers_ended": sum(answer[-1] in self.stops for answer in answers) / len(answers),
        }


def dialogue_prompts(rows: Sequence[Any]) -> list[list[int]]:
    """What comes before the first loss-bearing token of each row; rows where that is nothing are passed over."""
    starts = [next((i for i, label in enumerate(row.labels) if label != -100), 0) for row in rows]
    return [list(row.input_ids[:start]) for row, start in zip(rows, starts, strict=True) if start]


def _divergence(log_ratio: float) -> float:
    """(r - 1) - log r for r = exp(log_ratio), which is bounded so that one token cannot overflow the mean."""
    bounded = min(log_ratio, 50.0)
    return math.expm1(bounded) - bounded


@dataclass(frozen=True)
class _Drawn:
    """A prompt with the answer drawn to it, which begins at `start`."""

    ids: list[int]
    start: int

    @property
    def length(self) -> int:
        return len(self.ids)


def _drawn_sequences(rows: Sequence[_Drawn]) -> list[Sequence_]:
    return [Sequence_(row.ids, [len(row.ids)], range(row.start, len(row.ids))) for row in rows]


def _padded(one: Looked) -> list[float]:
    return [*one.logprobs, *[0.0] * (SAMPLED_TOKENS - len(one.logprobs))]


def _sums(rows: Sequence[Sequence[float]], width: int) -> list[float]:
    """The sums of the rows, place by place."""
    return [math.fsum(row[place] for row in rows) for place in range(width)]


def _closed(one: Looked, place: int | None) -> list[float]:
    """Whether the closing token at `place` was the most likely one, and whether there is one."""
    return [0.0, 0.0] if place is None else [float(one.top[place]), 1.0]


def _eos_rate(closed: float, closings: float) -> dict[str, float]:
    """The share of answers with a closing token at which that token was the most likely one."""
    return {"test/eos_rate": closed / closings} if closings else {}


def _first_of(sequence: Sequence_, stops: Collection[int]) -> int | None:
    """Which wanted token (0-based) ends the answer; what editions put behind it does not count."""
    return next((i for i, place in enumerate(sequence.predicted) if sequence.ids[place] in stops), None)


def _last_of(sequence: Sequence_, stops: Collection[int]) -> int | None:
    """Which wanted token (0-based) ends the dialogue's last answer that has its end."""
    wanted = sequence.predicted
    return next((i for i in reversed(range(len(wanted))) if sequence.ids[wanted[i]] in stops), None)


def _column(torch: Any, values: Sequence[float] | None) -> Any:
    return None if values is None else torch.tensor(list(values), dtype=torch.float64)
