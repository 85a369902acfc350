"""Token rows as tensors: what is fed, which places predict and what, in rows side by side and in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.training.batches import dialogue_sequences, loss_token_counts, pair_sequences, tensors
from zephyrctl.training.packing import pack_rows
from zephyrctl.training.token_rows import PairRows, PairTokens, SftRows, SftTokens

PAD = 0
IDS = st.integers(1, 99)


@st.composite
def dialogues(draw: Any) -> SftTokens:
    ids = draw(st.lists(IDS, min_size=1, max_size=12))
    borne = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    return SftTokens(ids, [token if b else -100 for token, b in zip(ids, borne, strict=True)])


DIALOGUES = st.lists(dialogues(), min_size=1, max_size=9)
ANSWER = st.lists(IDS, min_size=1, max_size=6)
PAIRS = st.lists(st.builds(PairTokens, st.lists(IDS, max_size=6), ANSWER, ANSWER), min_size=1, max_size=6)


def told(batch: dict[str, Any]) -> list[list[tuple[tuple[int, ...], int]]]:
    """For every sequence what is asked of the model: the tokens it may look at, and the one it is to predict.

    What it may look at is read as a model reads it: what lies before in the same row, back to where positions begin.
    """
    ids, keep = batch["input_ids"].flatten().tolist(), batch["keep"].tolist()
    width = batch["input_ids"].shape[1]
    positions = (
        batch.get("position_ids", torch.arange(width).expand_as(batch["input_ids"])).flatten().tolist()
    )
    found: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for place, target, owner in zip(keep, batch["targets"].tolist(), batch["owner"].tolist(), strict=True):
        start = place - positions[place]
        assert start // width == place // width
        assert [positions[p] for p in range(start, place + 1)] == list(range(place - start + 1))
        found.setdefault(owner, []).append((tuple(ids[start : place + 1]), target))
    return [found.get(number, []) for number in range(max(found, default=-1) + 1)]


def wanted(rows: list[SftTokens]) -> list[tuple[tuple[int, ...], int]]:
    """What plain rows ask, worked out by hand."""
    return [
        (tuple(row.input_ids[:place]), row.input_ids[place])
        for row in rows
        for place in range(1, len(row.input_ids))
        if row.labels[place] != -100
    ]


@pytest.mark.parametrize("flat", [False, True])
@given(DIALOGUES)
def test_dialogues_side_by_side_or_in_one_line_ask_the_same(flat: bool, rows: list[SftTokens]) -> None:
    batch = tensors(dialogue_sequences(rows), pad=PAD, flat=flat)
    assert [one for sequence in told(batch) for one in sequence] == wanted(rows)
    widest, total = max(len(r.input_ids) for r in rows), sum(len(r.input_ids) for r in rows)
    assert batch["input_ids"].shape == ((1, total) if flat else (len(rows), widest))
    assert ("position_ids" in batch) is flat
    assert batch["targets"].shape == batch["keep"].shape == batch["owner"].shape


@pytest.mark.parametrize("flat", [False, True])
@given(DIALOGUES, st.integers(5, 30), st.integers(0, 3))
def test_packs_ask_what_their_rows_ask(flat: bool, rows: list[SftTokens], capacity: int, seed: int) -> None:
    packs = list(pack_rows(SftRows(rows), capacity, seed=seed))
    batch = tensors(dialogue_sequences(packs), pad=PAD, flat=flat)
    asked = [one for sequence in told(batch) for one in sequence]
    assert sorted(asked) == sorted(wanted(rows))
    assert ("position_ids" in batch) is (flat or len(packs) < len(rows))


@pytest.mark.parametrize("flat", [False, True])
@given(DIALOGUES, st.integers(2, 9))
def test_rows_cut_between_packs_ask_with_what_is_left_before_them(
    flat: bool, rows: list[SftTokens], capacity: int
) -> None:
    packed = pack_rows(SftRows(rows), capacity, "wrapped")
    parts = [
        SftTokens(rows[r].input_ids[a:b], rows[r].labels[a:b])
        for pack in packed.plan.packs
        for r, a, b in pack
    ]
    batch = tensors(dialogue_sequences(list(packed)), pad=PAD, flat=flat)
    assert [one for sequence in told(batch) for one in sequence] == wanted(parts)
    first = {0}
    for pack in packed.plan.documents():
        for length in pack:
            first.add(max(first) + length)
    if flat:  # no place predicts the first token of a document
        assert not {place + 1 for place in batch["keep"].tolist()} & first


@given(DIALOGUES, st.sampled_from(["best-fit", "wrapped"]), st.integers(2, 30))
def test_loss_tokens_are_counted_without_making_the_rows(
    rows: list[SftTokens], how: Any, capacity: int
) -> None:
    stored = SftRows(rows)
    packed = pack_rows(stored, capacity, how)
    for data in (stored, packed):
        assert loss_token_counts(data) == [len(s.predicted) for s in dialogue_sequences(list(data))]
    assert loss_token_counts(rows) == loss_token_counts(stored)
    if how == "best-fit":
        assert sum(loss_token_counts(packed)) == sum(loss_token_counts(stored))


def test_counting_no_rows() -> None:
    assert loss_token_counts(SftRows()) == []


def test_padding_is_a_document_of_its_own() -> None:
    rows = [SftTokens([5, 6, 7], [-100, 6, 7]), SftTokens([8], [-100])]
    packed = pack_rows(SftRows(rows), 4)
    alone = SftTokens([9, 4, 3, 2, 1], [-100, 4, 3, 2, 1])
    batch = tensors(dialogue_sequences([*packed, alone]), pad=PAD, flat=False)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, PAD], [9, 4, 3, 2, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert batch["keep"].tolist() == [0, 1, 5, 6, 7, 8]
    assert batch["targets"].tolist() == [6, 7, 4, 3, 2, 1]
    assert batch["owner"].tolist() == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("flat", [False, True])
@given(PAIRS)
def test_pairs_ask_for_every_token_of_both_answers(flat: bool, rows: list[PairTokens]) -> None:
    made = pair_sequences(rows)
    batch = tensors(made, pad=PAD, flat=flat)
    found = told(batch)
    found += [[]] * (2 * len(rows) - len(found))
    for number, row in enumerate(rows):
        for place, answer in ((number, row.chosen_ids), (len(rows) + number, row.rejected_ids)):
            whole = [*row.prompt_ids, *answer]
            start = max(1, len(row.prompt_ids))  # nothing predicts the first token of all
            assert found[place] == [(tuple(whole[:p]), whole[p]) for p in range(start, len(whole))]
    assert [len(sequence.predicted) for sequence in made] == [len(asked) for asked in found]


def test_pairs_with_prompts_count_every_token_of_their_answers() -> None:
    rows = PairRows([PairTokens([1], [2, 3], [4]), PairTokens([5, 6], [7], [8, 9, 1])])
    assert [len(s.predicted) for s in pair_sequences(list(rows))] == [2, 1, 1, 3]
