"""Scores of rows: the sums of plain forward passes, in the rows' own order, however they are scored together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from zephyrctl.training.crew import Crew
from zephyrctl.training.logprobs import read_inside
from zephyrctl.training.model import load_model
from zephyrctl.training.packing import pack_rows
from zephyrctl.training.scoring import Scorer
from zephyrctl.training.token_rows import PairRows, PairTokens, SftRows, SftTokens

Score = Callable[..., Scorer]


class Part(Crew):
    """One of several processes, whose sums stay its own."""

    def total(self, values: Any) -> list[float]:
        return list(values)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    made = load_model(tiny)
    read_inside(made)
    return made


@pytest.fixture
def scorer(model: Any) -> Score:
    def make(**changes: Any) -> Scorer:
        return Scorer(
            model=model,
            **{"pad": 3, "size": 2, "flat": False, "autocast": nullcontext, "device": "cpu", **changes},
        )

    return make


def ids(count: int, start: int) -> list[int]:
    return [4 + (start + 37 * place) % 250 for place in range(count)]


@pytest.fixture(scope="module")
def pairs() -> PairRows:
    return PairRows(PairTokens(ids(3 + n, n), ids(9 - n, n + 50), ids(1 + 2 * n, n + 90)) for n in range(5))


@pytest.fixture(scope="module")
def dialogues() -> SftRows:
    rows = [ids(n, n) for n in (6, 12, 3, 9, 1)]
    return SftRows(SftTokens(row, [-100, *row[1:3], -100, *row[4:]][: len(row)]) for row in rows)


def by_hand(model: Any, tokens: list[int], wanted: list[int]) -> float:
    """The sum of the log-probabilities of the tokens at these places, one by one."""
    with torch.no_grad():
        found = model.eval()(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    return sum(float(found[place - 1, tokens[place]]) for place in wanted)


@pytest.mark.parametrize(
    "changes", [{}, {"size": 1}, {"size": 99}, {"flat": True}, {"size": 99, "flat": True}]
)
def test_pairs_have_the_scores_of_plain_forward_passes(
    changes: dict[str, Any], scorer: Score, model: Any, pairs: PairRows
) -> None:
    chosen, rejected = scorer(**changes).pairs(pairs)
    for number, row in enumerate(pairs):
        for found, answer in ((chosen, row.chosen_ids), (rejected, row.rejected_ids)):
            whole = [*row.prompt_ids, *answer]
            wanted = by_hand(model, whole, list(range(len(row.prompt_ids), len(whole))))
            assert found[number] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("changes", [{}, {"size": 99}, {"size": 99, "flat": True}])
def test_dialogues_have_the_scores_of_plain_forward_passes(
    changes: dict[str, Any], scorer: Score, model: Any, dialogues: SftRows
) -> None:
    found = scorer(**changes).dialogues(dialogues)
    for score, row in zip(found, dialogues, strict=True):
        places = [place for place, label in enumerate(row.labels) if label != -100]
        assert score == pytest.approx(by_hand(model, row.input_ids, places), abs=1e-4)
    packed = scorer(**changes).dialogues(pack_rows(dialogues, 16))
    assert sum(packed) == pytest.approx(sum(found), abs=1e-4)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_the_parts_of_several_processes_add_up(world: int, scorer: Score, pairs: PairRows) -> None:
    whole = scorer().pairs(pairs)
    parts = [scorer(crew=Part(rank, world)).pairs(pairs) for rank in range(world)]
    for side in (0, 1):
        for number in range(len(pairs)):
            values = [part[side][number] for part in parts]
            assert sum(value != 0 for value in values) == 1  # each pair is one process's own
            assert sum(values) == pytest.approx(whole[side][number], abs=1e-4)


def test_no_rows_have_no_scores(scorer: Score) -> None:
    assert scorer().pairs(PairRows()) == ([], [])
    assert scorer().dialogues(SftRows()) == []


def test_scoring_asks_for_no_gradient_and_no_dropout(scorer: Score, model: Any, pairs: PairRows) -> None:
    seen: list[tuple[bool, bool]] = []
    handle = model.register_forward_pre_hook(
        lambda *_: seen.append((model.training, torch.is_grad_enabled()))
    )
    model.train()
    scorer().pairs(pairs)
    handle.remove()
    assert set(seen) == {(False, False)}


def test_scores_are_in_the_arithmetic_of_training(scorer: Score, pairs: PairRows) -> None:
    exact, _ = scorer().pairs(pairs)
    rounded, _ = scorer(autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)).pairs(pairs)
    assert rounded != exact
    assert rounded == pytest.approx(exact, abs=0.5)
