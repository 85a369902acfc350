"""Rows to tokens: cuts and drops by the recipe's rule, each counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.chat.render import RenderedPair, render_prompt
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.records import Message, PreferenceRow, SftRow
from zephyrctl.training.tokens import cut_pair, pair_tokens, sft_tokens


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def answer(text: str) -> Message:
    return Message(role="assistant", content=text)


def sft(*texts: str) -> list[tuple[str, SftRow]]:
    return [
        (f"f:{i}", SftRow(row_id=str(i), prompt_id=str(i), messages=[user("q"), answer(t)]))
        for i, t in enumerate(texts)
    ]


def test_long_rows_keep_their_start_and_are_counted(tokenizer: Any) -> None:
    prompt = len(render_prompt(tokenizer, [user("q")]))
    made = sft_tokens(sft("z" * 50, "z"), tokenizer, max_length=prompt + 10)
    assert [row.length for row in made.rows] == [prompt + 10, prompt + 3]
    assert made.rows[0].labels[prompt:] == made.rows[0].input_ids[prompt:]
    assert tokenizer.eos_token_id not in made.rows[0].input_ids[prompt:]
    assert made.rows[1].labels[-2] == tokenizer.eos_token_id
    assert made.counts["cut"] == 1
    assert made.counts["cut_tokens"] == 42
    assert made.counts["dropped_too_long"] == 0
    assert made.counts["loss_tokens"] == 12


def test_rows_without_an_answer_token_are_dropped_with_their_place(tokenizer: Any) -> None:
    made = sft_tokens(sft("yes"), tokenizer, max_length=8)
    assert made.rows == []
    assert made.counts["dropped_too_long"] == 1
    assert made.counts["cut"] == 0
    assert made.rejects[0]["where"] == "f:0"
    assert made.rejects[0]["reason"] == "too_long"
    assert made.rejects[0]["row"]["messages"][1]["content"] == "yes"


def pref(prompt: str, chosen: str, rejected: str) -> tuple[str, PreferenceRow]:
    return (
        "p:1",
        PreferenceRow(
            prompt_id="1", prompt=[user(prompt)], chosen=[answer(chosen)], rejected=[answer(rejected)]
        ),
    )


def test_pairs_are_cut_by_side_and_counted(tokenizer: Any) -> None:
    rows = [pref("q" * 100, "c" * 50, "r" * 3), pref("q", "c", "r")]
    made = pair_tokens(rows, tokenizer, max_length=60, max_prompt_length=30)
    first = made.rows[0]
    assert (len(first.prompt_ids), len(first.chosen_ids), len(first.rejected_ids)) == (30, 30, 4)
    assert first.prompt_ids == render_prompt(tokenizer, rows[0][1].prompt)[-30:]
    wanted = {"cut": 1, "cut_prompt": 1, "cut_chosen": 1, "cut_rejected": 0, "rows": 2, "dropped_too_long": 0}
    assert {k: made.counts[k] for k in wanted} == wanted


def test_pairs_made_equal_by_the_cut_are_dropped(tokenizer: Any) -> None:
    made = pair_tokens(
        [pref("q", "same" * 30 + "a", "same" * 30 + "b")], tokenizer, max_length=60, max_prompt_length=30
    )
    assert made.rows == []
    assert made.counts["dropped_same_after_cut"] == 1


def test_a_pair_the_renderer_refuses_is_dropped_by_name(tokenizer: Any) -> None:
    row = PreferenceRow(
        prompt_id="1",
        prompt=[user("q")],
        chosen=[answer("a"), user("b"), answer("c")],
        rejected=[answer("x"), user("b"), answer("c")],
    )
    made = pair_tokens([("p:7", row)], tokenizer, max_length=60, max_prompt_length=30)
    assert made.counts["dropped_unrenderable"] == 1
    assert made.rejects[0]["where"] == "p:7"


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 80), st.integers(8, 100), st.integers(1, 100))
def test_cut_pairs_fit_and_are_left_alone_when_they_do(
    prompt: int, chosen: int, rejected: int, max_length: int, max_prompt: int
) -> None:
    pair = RenderedPair(list(range(prompt)), [1] * chosen, [2] * rejected)
    kept = cut_pair(pair, max_length=max_length, max_prompt_length=max_prompt)
    assert kept.length <= max_length
    assert min(map(len, (kept.prompt_ids, kept.chosen_ids, kept.rejected_ids))) >= 1
    assert kept.prompt_ids == pair.prompt_ids[-len(kept.prompt_ids) :]
    if prompt + max(chosen, rejected) <= max_length:
        assert (kept.prompt_ids, kept.chosen_ids, kept.rejected_ids) == (
            pair.prompt_ids, pair.chosen_ids, pair.rejected_ids,
        )  # fmt: skip


def test_special_tokens_spelled_out_are_counted(tokenizer: Any) -> None:
    made = sft_tokens(sft("an </s> inside", "none"), tokenizer, max_length=200)
    assert made.counts["special_tokens_in_text"] == 1
