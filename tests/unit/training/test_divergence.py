"""Where two recipes' tokens part."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.chat.rules import TokenRules
from zephyrctl.editions.samples import sample_dialogues, sample_pairs
from zephyrctl.training.divergence import (
    Decisions,
    Spot,
    Stream,
    Token,
    pair_partings,
    sft_partings,
    spots,
)
from zephyrctl.training.locate import sandbox_base

streams = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30).map(
    lambda pairs: Stream(tuple(Token(number, "abcd"[number], loss) for number, loss in pairs))
)


def changed(first: Stream, found: list[Spot]) -> list[Token]:
    tokens = list(first.tokens)
    for spot in reversed(found):
        tokens[spot.at[0] : spot.at[0] + len(spot.first)] = spot.second
    return tokens


@given(streams, streams)
def test_the_spots_turn_one_stream_into_the_other(first: Stream, second: Stream) -> None:
    found = spots(first, second)
    assert changed(first, found) == list(second.tokens)
    for spot in found:
        assert first.tokens[spot.at[0] :][: len(spot.first)] == spot.first
        assert second.tokens[spot.at[1] :][: len(spot.second)] == spot.second


@given(streams, streams)
def test_the_first_spot_is_the_first_differing_token(first: Stream, second: Stream) -> None:
    found = spots(first, second)
    assert (not found) == (first == second)
    if found:
        at = found[0].at[0]
        assert found[0].at == (at, at)
        assert first.tokens[:at] == second.tokens[:at]
        assert first.tokens[at : at + 1] != second.tokens[at : at + 1]


def test_of_two_closing_tokens_the_second_is_the_addition() -> None:
    end, line, word = Token(1, "</s>", True), Token(2, "\n", True), Token(3, "x", True)
    [spot] = spots(Stream((word, end)), Stream((word, end, line, end)))
    assert (spot.at, spot.first, spot.second, spot.before) == ((2, 2), (), (line, end), "x</s>")
    head = [Token(7, "h", False)], [Token(7, "h", True)]
    *_, last = spots(Stream((*head[0], word, end)), Stream((*head[1], word, end, line, end)))
    assert (last.at, last.second) == ((3, 3), (line, end))


def test_bos_loss_and_close_are_found(tiny: Path) -> None:
    plain = Decisions(TokenRules(), 64, system="")
    one = sft_partings(sample_dialogues()[:1], tiny, plain, Decisions(TokenRules(bos=True), 64, system=""))[0]
    assert one.spots[0].at == (0, 0)
    assert [token.text for token in one.spots[0].second] == ["<s>"]
    everything = Decisions(TokenRules(loss_on="all"), 64, system="")
    two = sft_partings(sample_dialogues()[:1], tiny, plain, everything)[0]
    assert all(spot.loss_only for spot in two.spots)
    assert two.second.with_loss == len(two.second.tokens) - 1  # nothing predicts the first token
    closing = Decisions(TokenRules(close="template+eos"), 64, system="")
    three, four = pair_partings(sample_pairs()[:1], tiny, plain, closing)
    assert (three.side, four.side) == ("chosen", "rejected")
    assert [token.text for token in three.spots[0].second] == ["\n", "</s>"]


def test_the_system_turn_and_the_template_count(tiny: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
                   "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")  # fmt: skip
    none, empty = Decisions(TokenRules(), 64), Decisions(TokenRules(), 64, system="")
    spot = sft_partings(sample_dialogues()[:1], tiny, none, empty)[0].spots[0]
    assert spot.before.endswith("<|")
    other = Decisions(TokenRules(), 64, chat_template=str(own))
    assert sft_partings(sample_dialogues()[:1], tiny, none, other)[0].spots[0].at == (0, 0)


def test_cuts(tiny: Path) -> None:
    long_dialogue = [row for row in sample_dialogues() if row[0] == "long answer"]
    short, ends, wrapped = (
        Decisions(TokenRules(), 256),
        Decisions(TokenRules(), 256, truncation="keep_end"),
        Decisions(TokenRules(), 256, wrapped=True),
    )
    one = sft_partings(long_dialogue, tiny, short, wrapped)[0]
    assert len(one.first.tokens) == 256 < len(one.second.tokens)
    assert sft_partings(long_dialogue, tiny, short, ends)[0].spots
    pairs = [row for row in sample_pairs() if row[0] == "long answer"]
    room = Decisions(TokenRules(), 1024, max_prompt_length=512, answer_room="fixed")
    two = pair_partings(pairs, tiny, Decisions(TokenRules(), 1024), room)[0]
    assert len(two.first.tokens) == 1024
    assert two.second.with_loss == 512


def test_the_text_around_a_spot_is_text_though_a_character_is_several_tokens() -> None:
    row = sample_dialogues()[0][1]
    asked, answer = row.messages[0], row.messages[1].model_copy(update={"content": "naïve 东京"})
    said = [("x", row.model_copy(update={"messages": [asked, answer]}))]
    one = sft_partings(
        said, sandbox_base(), Decisions(TokenRules(), 64), Decisions(TokenRules(loss_on="all"), 64)
    )
    assert one[0].spots[-1].before.endswith("aïve 东京</s>")


def test_a_dropped_row_says_why(tiny: Path) -> None:
    one = sft_partings(sample_dialogues()[:1], tiny, Decisions(TokenRules(), 8), Decisions(TokenRules(), 64))[
        0
    ]
    assert one.first.dropped == "too long"
    assert one.first.tokens == ()
    assert len(one.spots) == 1


@pytest.mark.parametrize("name", ["long prompt", "long answer"])
def test_long_samples_are_too_long_for_every_edition(name: str, tiny: Path) -> None:
    rows = [row for row in sample_pairs() if row[0] == name]
    wide = Decisions(TokenRules(), 1_000_000)
    assert len(pair_partings(rows, tiny, wide, wide)[0].first.tokens) > 2048
