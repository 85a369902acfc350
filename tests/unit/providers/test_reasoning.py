"""Reasoning written into an answer is taken out of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.providers.hosted.reasoning import split_thinking


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>hm</think>42", "hm", "42"),
        ("\n<think>\nhm\n</think>\n\n42\n", "hm", "42\n"),
        ("<THINK>hm</THINK>42", "hm", "42"),
        ("<think>cut off in the mid", "cut off in the mid", ""),
        ("<think>", "", ""),
        ("hm, so\n</think>\n\n42", "hm, so", "42"),
        ("hm</think>", "hm", ""),
        ("<think></think>42", "", "42"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("plain", "", "plain"),
        ("  spaces stay ", "", "  spaces stay "),
        ("the tag <think> is opened", "", "the tag <think> is opened"),
        ("say <think>x</think> twice", "", "say <think>x</think> twice"),
        ("the tag </think> closes it", "", "the tag </think> closes it"),
        ("", "", ""),
    ],
)
def test_splitting(text: str, reasoning: str, answer: str) -> None:
    assert split_thinking(text) == (reasoning, answer)


PARTS = st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "a", "ü", "<", "</"]), max_size=12)


@given(PARTS)
def test_nothing_is_made_up(parts: list[str]) -> None:
    text = "".join(parts)
    reasoning, answer = split_thinking(text)
    assert reasoning in text
    assert answer in text
    if not reasoning and "<think>" not in text and "</think>" not in text:
        assert answer == text
    if text.lstrip().startswith("<think>"):
        assert not answer.startswith("<think>") or "</think>" in text
