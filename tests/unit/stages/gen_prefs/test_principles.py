"""Principles are drawn by the stated weights, from content alone, and a prompt's own system message stands."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.records import Message, PromptRow, prompt_id
from zephyrctl.stages.gen_prefs.principles import ultrafeedback, with_principle

TABLE = ultrafeedback()
DRAWS = 10_000
WEIGHTS = {
    "sharegpt": {"helpfulness": 60, "truthfulness": 20, "honesty": 18, "verbalised_calibration": 2},
    "ultrachat": {"helpfulness": 60, "truthfulness": 20, "honesty": 18, "verbalised_calibration": 2},
    "flan_v2_niv2": {"helpfulness": 80, "verbalised_calibration": 20},
    "evol_instruct": {"helpfulness": 100},
    "truthful_qa": {"honesty": 50, "truthfulness": 50},
    "false_qa": {"honesty": 50, "truthfulness": 50},
    "my own prompts": {"helpfulness": 60, "truthfulness": 20, "honesty": 18, "verbalised_calibration": 2},
}


def row(text: str, source: str = "", system: str | None = None) -> PromptRow:
    prompt = [Message(role="user", content=text)]
    if system is not None:
        prompt.insert(0, Message(role="system", content=system))
    return PromptRow(prompt_id=prompt_id(prompt), prompt=prompt, source=source)


@pytest.mark.parametrize("source", WEIGHTS)
def test_ten_thousand_draws_follow_the_stated_weights(source: str) -> None:
    drawn: Counter[str] = Counter()
    for i in range(DRAWS // 4):
        one = row(f"question {i}", source)
        for draw in range(4):
            found = TABLE.drawn(one, 42, "box:model", draw)
            assert found is not None
            drawn[found[0]] += 1
    assert set(drawn) == set(WEIGHTS[source])
    for name, weight in WEIGHTS[source].items():
        share = weight / 100
        # five standard deviations
        assert abs(drawn[name] / DRAWS - share) <= 5 * (share * (1 - share) / DRAWS) ** 0.5


def test_every_wording_is_used() -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for i in range(4000):
        found = TABLE.drawn(row(f"q {i}", "truthful_qa"), 1, "m", 0)
        assert found is not None
        seen[found] += 1
    for name in ("honesty", "truthfulness"):
        texts = TABLE.texts[name]
        counts = [seen[name, text] for text in texts]
        assert min(counts) > 0.7 * sum(counts) / len(texts)


def test_there_are_six_wordings_or_more_of_each_and_none_twice() -> None:
    assert set(TABLE.texts) == {"helpfulness", "truthfulness", "honesty", "verbalised_calibration"}
    every = [text for texts in TABLE.texts.values() for text in texts]
    assert len(set(every)) == len(every)
    assert all(len(texts) >= 6 for texts in TABLE.texts.values())
    assert all(isinstance(text, str) and text == text.strip() and "  " not in text for text in every)
    for mix in TABLE.mixes.values():
        assert sum(mix.values()) == 100
        assert set(mix) <= set(TABLE.texts)
    assert set(TABLE.sources.values()) | {TABLE.otherwise} == set(TABLE.mixes)


@pytest.mark.parametrize(
    ("source", "mix"),
    [
        ("ultrafeedback/flan_v2_cot", "tasks"),
        ("Evol-Instruct", "complex"),
        ("ultrafeedback/truthful_qa", "traps"),
        ("falseqa", "traps"),
        ("evolution quiz", "general"),
        ("zephyrctl/seeds/writing", "general"),
        ("", "general"),
    ],
)
def test_a_source_is_known_by_a_name_that_stands_by_itself(source: str, mix: str) -> None:
    assert TABLE.mix_of(source) == mix


@given(st.text(max_size=20), st.integers(0, 9), st.integers(0, 3))
def test_a_draw_depends_on_prompt_member_and_number_alone(text: str, seed: int, draw: int) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert TABLE.drawn(row(text), seed, "m", draw) == TABLE.drawn(row(text), seed, "m", draw)


def test_members_and_draws_are_drawn_apart() -> None:
    found = {TABLE.drawn(row("q"), 42, member, draw) for member in "abcdefgh" for draw in range(4)}
    assert len(found) > 8


def test_a_system_message_of_the_prompts_own_stands_alone() -> None:
    assert TABLE.drawn(row("q", system="Answer in French."), 42, "m", 0) is None


def test_the_principle_comes_before_the_prompt() -> None:
    one = row("q")
    assert with_principle(one.prompt, None) == tuple(one.prompt)
    assert [(m.role, m.content) for m in with_principle(one.prompt, "Be kind.")] == [
        ("system", "Be kind."),
        ("user", "q"),
    ]


def test_another_wording_or_weight_is_other_work() -> None:
    from dataclasses import replace

    [before] = TABLE.inputs()
    texts = {**TABLE.texts, "honesty": [*TABLE.texts["honesty"], "Say what is so."]}
    mixes = {**TABLE.mixes, "general": {**TABLE.mixes["general"], "helpfulness": 61}}
    changed = [replace(TABLE, texts=texts), replace(TABLE, mixes=mixes), replace(TABLE, otherwise="complex")]
    assert len({before.digest, *(one.inputs()[0].digest for one in changed)}) == 4
