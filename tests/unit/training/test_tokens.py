"""Rows to tokens: cuts and drops by the recipe's rule, each counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.chat.render import Rendered, RenderedPair, render_prompt
from zephyrctl.chat.rules import TokenRules
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import StageRejected
from zephyrctl.records import Message, PreferenceRow, SftRow
from zephyrctl.training.crowd import CHUNK
from zephyrctl.training.token_rows import SftRows, SftTokens
from zephyrctl.training.tokens import (
    Tokens,
    cut_dialogue,
    cut_pair,
    kept_lengths,
    pair_tokens,
    require_few_dropped,
    sft_tokens,
)


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


def test_the_end_of_a_dialogue_can_be_what_is_kept(tokenizer: Any) -> None:
    whole = sft_tokens(sft("z" * 50), tokenizer, max_length=500).rows[0]
    made = sft_tokens(sft("z" * 50), tokenizer, max_length=10, truncation="keep_end")
    assert made.rows[0].input_ids == whole.input_ids[-10:]
    assert made.rows[0].labels == [-100, *whole.labels[-9:]]
    assert (made.counts["cut"], made.counts["cut_tokens"], made.counts["lost_end"]) == (
        1,
        whole.length - 10,
        0,
    )
    assert made.counts["loss_tokens"] == 8
    assert made.counts["cut_loss_tokens"] == 51 - 8


@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.sampled_from(["keep_start", "keep_end"])
)
def test_a_cut_dialogue_is_a_run_of_the_whole(prompt: int, said: int, most: int, truncation: Any) -> None:
    ids = list(range(prompt + said))
    rendered = Rendered("", ids, [False] * prompt + [True] * said)
    kept = cut_dialogue(rendered, max_length=most, truncation=truncation)
    assert kept.length == min(most, len(ids))
    start = 0 if truncation == "keep_start" else len(ids) - kept.length
    assert kept.input_ids == ids[start : start + kept.length]
    assert kept.labels[0] == -100
    assert kept.labels[1:] == rendered.labels[start : start + kept.length][1:]
    assert cut_dialogue(rendered, max_length=None, truncation=truncation).input_ids == ids


def test_what_a_cut_takes_is_counted(tokenizer: Any) -> None:
    prompt = len(render_prompt(tokenizer, [user("q")]))
    made = sft_tokens(sft("z" * 50, "z" * 9), tokenizer, max_length=prompt + 10)
    assert made.counts["cut"] == 2, "the second row loses only the newline behind its end"
    assert made.counts["lost_end"] == 1
    assert made.counts["cut_loss_tokens"] == 41
    assert made.counts["cut_tokens"] == 43


def test_rules_of_an_edition_reach_the_tokens(tokenizer: Any) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    plain = sft_tokens(sft("yes"), tokenizer, max_length=200).rows[0]
    ruled = sft_tokens(sft("yes"), tokenizer, max_length=200, rules=TokenRules(bos=True, loss_on="all"))
    assert ruled.rows[0].input_ids == [bos, *plain.input_ids]
    assert ruled.rows[0].labels == [-100, *plain.input_ids]
    assert ruled.counts["loss_tokens"] == plain.length
    cut = sft_tokens(sft("yes"), tokenizer, max_length=6, rules=TokenRules(bos=True), truncation="keep_end")
    assert (cut.counts["lost_start"], ruled.counts["lost_start"]) == (1, 0)
    rules = TokenRules(close="template+eos", header_in_answer=True)
    pairs = pair_tokens([pref("q", "c", "r")], tokenizer, max_length=90, max_prompt_length=60, rules=rules)
    pair = pairs.rows[0]
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert pair.chosen_ids[-3:] == [eos, *newline, eos]
    assert tokenizer.decode(pair.chosen_ids).startswith("<|assistant|>\n")


def test_cuts_of_pairs_are_counted_in_tokens(tokenizer: Any) -> None:
    rows = [pref("q" * 100, "c" * 50, "r" * 3)]
    whole = pair_tokens(rows, tokenizer, max_length=900, max_prompt_length=900).rows[0]
    made = pair_tokens(rows, tokenizer, max_length=60, max_prompt_length=30, rules=TokenRules(bos=True))
    kept = made.rows[0]
    assert len(kept.prompt_ids) == 30
    assert made.counts["lost_start"] == made.counts["lost_end"] == 1
    assert made.counts["cut_loss_tokens"] == len(whole.chosen_ids) - 30
    assert made.counts["cut_tokens"] == len(whole.prompt_ids) + 1 - 30 + len(whole.chosen_ids) - 30
    assert made.counts["loss_tokens"] == 34


def test_a_fixed_room_takes_from_the_answers_of_short_prompts() -> None:
    pair = RenderedPair([0] * 10, [1] * 200, [2] * 20)
    rest = cut_pair(pair, max_length=100, max_prompt_length=40)
    fixed = cut_pair(pair, max_length=100, max_prompt_length=40, answer_room="fixed")
    assert kept_lengths((10, 200, 20), max_length=100, max_prompt_length=40) == (10, 90, 20)
    assert (len(rest.chosen_ids), len(rest.rejected_ids)) == (90, 20)
    assert (len(fixed.prompt_ids), len(fixed.chosen_ids), len(fixed.rejected_ids)) == (10, 60, 20)
    assert cut_pair(RenderedPair([0] * 50, [1] * 60, [2]), max_length=100, max_prompt_length=40).length == 100


def with_drops(tokenizer: Any, kept: int, dropped: int) -> Tokens:
    prompt = len(render_prompt(tokenizer, [user("q")]))
    made = sft_tokens(sft(*["z"] * kept), tokenizer, max_length=prompt + 3)
    made.extend(sft_tokens(sft(*["z"] * dropped), tokenizer, max_length=8))
    return made


def test_few_drops_pass_and_more_stop_the_stage(tokenizer: Any) -> None:
    made = with_drops(tokenizer, 7, 2)
    assert made.dropped == {"too_long": 2}
    require_few_dropped(made, 2 / 9)
    require_few_dropped(with_drops(tokenizer, 3, 0), 0.0)
    with pytest.raises(
        StageRejected, match=r"2 of 9 training rows \(22\.2%\).*5\.0% may: 2 too long.*f:0"
    ) as caught:
        require_few_dropped(made, 0.05)
    assert caught.value.exit_code == 9
    assert "--max-dropped 0.23" in str(caught.value.hint)
    require_few_dropped(made, 0.23)


@given(st.integers(0, 40), st.integers(1, 40))
def test_the_limit_in_the_hint_is_enough(kept: int, dropped: int) -> None:
    made = Tokens(SftRows(SftTokens([1, 2], [-100, 2]) for _ in range(kept)))
    made.counts["dropped_too_long"] = dropped
    made.rejects = [{"where": "f:1", "reason": "too_long", "detail": "long"}]
    with pytest.raises(StageRejected) as caught:
        require_few_dropped(made, 0.0)
    limit = float(str(caught.value.hint).split()[-1])
    assert limit <= 1
    require_few_dropped(made, limit)


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(tokenizer: Any) -> None:
    rows = [*sft(*(f"{i} says yes" * (1 + i % 5) for i in range(CHUNK + 30))), *sft("q" * 3)]
    alone, two = (sft_tokens(rows, tokenizer, max_length=48, processes=n) for n in (1, 2))
    assert two.rows == alone.rows
    assert two.counts == alone.counts
    assert two.rejects == alone.rejects


def test_what_the_user_should_know_is_said(tokenizer: Any) -> None:
    prompt = len(render_prompt(tokenizer, [user("q")]))
    assert sft_tokens(sft("z"), tokenizer, max_length=500).warnings() == []
    made = sft_tokens(sft("z" * 50, "a</s>b", "z"), tokenizer, max_length=prompt + 10)
    assert made.warnings() == [
        "rows cut to fit: 1 (42 tokens lost, 41 of them would bear loss; answers that lost their end: 1)",
        "rows that spell out special tokens in their text: 1",
    ]
    assert with_drops(tokenizer, 1, 2).warnings() == ["rows left out, too long: 2"]


def test_faults_of_whole_rows_are_counted(tokenizer: Any, tiny: Path) -> None:
    doubled = load_tokenizer(tiny)
    doubled.chat_template = doubled.chat_template.replace("eos_token", "eos_token + eos_token")
    made = sft_tokens(sft("z"), doubled, max_length=500, rules=TokenRules(loss_on="all"))
    pairs = pair_tokens(
        [pref("q", "c", "r")],
        doubled,
        max_length=90,
        max_prompt_length=60,
        rules=TokenRules(close="template"),
    )
    assert (made.counts["fault_eos_repeated"], pairs.counts["fault_eos_repeated"]) == (1, 1)
    assert made.warnings() == ["faulty rows: 1 (a closing token is followed by another one that bears loss)"]
    assert not any(
        name.startswith("fault_") for name in sft_tokens(sft("z"), tokenizer, max_length=99).counts
    )
