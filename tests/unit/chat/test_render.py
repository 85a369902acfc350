"""Rendering: one token stream for training and generation, and loss on answers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.chat.render import (
    render_dialogue,
    render_pair,
    render_prompt,
    render_text,
    special_tokens_in,
    template_digest,
    with_system_default,
    zephyr_template,
)
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import EnvironmentFault, UsageError
from zephyrctl.records import Message


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


def talk(*texts: str) -> list[Message]:
    return [Message(role="user" if i % 2 == 0 else "assistant", content=t) for i, t in enumerate(texts)]


def borne(tokenizer: Any, messages: list[Message]) -> str:
    rendered = render_dialogue(tokenizer, messages)
    return str(
        tokenizer.decode([i for i, m in zip(rendered.input_ids, rendered.loss_mask, strict=True) if m])
    )


def test_golden_text_and_ids(tokenizer: Any) -> None:
    rendered = render_dialogue(tokenizer, talk("hi the", "in or"))
    assert rendered.text == "<|user|>\nhi the</s>\n<|assistant|>\nin or</s>\n"
    tokens = tokenizer.convert_ids_to_tokens(rendered.input_ids)
    head = [*"<|user|>", "Ċ", "h", "i", "Ġthe", "</s>", "Ċ", "<", "|", *"assistant", "|", ">", "Ċ"]
    assert tokens == [*head, "in", "Ġ", "or", "</s>", "Ċ"]
    assert rendered.loss_mask == [False] * len(head) + [True] * 4 + [False]
    assert rendered.labels == [-100] * len(head) + rendered.input_ids[len(head) : -1] + [-100]


def test_loss_is_borne_by_every_answer_and_its_end(tokenizer: Any) -> None:
    system = Message(role="system", content="be brief")
    assert borne(tokenizer, [system, *talk("a", "first", "b", "second")]) == "first</s>second</s>"


def test_no_token_is_added_at_either_end(tokenizer: Any) -> None:
    ids = render_dialogue(tokenizer, talk("a", "b")).input_ids
    assert tokenizer.bos_token_id not in ids
    assert ids.count(tokenizer.eos_token_id) == 2
    assert tokenizer.eos_token_id not in render_prompt(tokenizer, talk("a"))[-3:]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=20), min_size=2, max_size=6))
def test_every_prompt_is_a_prefix_of_its_dialogue(tokenizer: Any, texts: list[str]) -> None:
    messages = talk(*texts[: len(texts) // 2 * 2])
    rendered = render_dialogue(tokenizer, messages)
    for index in range(0, len(messages), 2):
        prompt = render_prompt(tokenizer, messages[: index + 1])
        assert rendered.input_ids[: len(prompt)] == prompt
        assert rendered.loss_mask[len(prompt)], "the first answer token is trained"
        assert not rendered.loss_mask[len(prompt) - 1]
    assert tokenizer.decode(rendered.input_ids) == rendered.text
    answers = "".join(m.content + "</s>" for m in messages if m.role == "assistant")
    assert borne(tokenizer, messages) == answers


def test_an_answer_that_would_merge_with_its_prompt_is_tokenised_apart(tokenizer: Any) -> None:
    rendered = render_dialogue(tokenizer, talk("x", "\n\nyo"))
    assert rendered.resegmented
    prompt = render_prompt(tokenizer, talk("x"))
    assert rendered.input_ids[: len(prompt)] == prompt
    assert not render_dialogue(tokenizer, talk("x", "yo")).resegmented


def test_a_later_prompt_may_split_the_border_of_such_an_answer_otherwise(tokenizer: Any) -> None:
    messages = talk("x", "\n\nyo", "more", "no")
    rendered = render_dialogue(tokenizer, messages)
    later = render_prompt(tokenizer, messages[:3])
    assert rendered.resegmented
    assert rendered.input_ids[: len(later)] != later, (
        "as history the answer is tokenised with the text around it"
    )
    start = tokenizer.decode(rendered.input_ids).index(tokenizer.decode(later))
    assert start == 0
    pair = render_pair(tokenizer, messages[:3], messages[3:], talk("", "yes")[1:])
    assert pair.prompt_ids == later, "a preference trains its last answer alone, behind the very prompt"


def test_pair_shares_its_prompt_and_ends_both_answers(tokenizer: Any) -> None:
    pair = render_pair(tokenizer, talk("q"), [Message(role="assistant", content="good")], talk("", "bad")[1:])
    assert pair.prompt_ids == render_prompt(tokenizer, talk("q"))
    assert tokenizer.decode(pair.chosen_ids) == "good</s>"
    assert tokenizer.decode(pair.rejected_ids) == "bad</s>"


def test_turns_that_both_sides_share_join_the_prompt(tokenizer: Any) -> None:
    shared = talk("q", "a", "more?")
    chosen, rejected = [*shared[1:], *talk("", "yes")[1:]], [*shared[1:], *talk("", "no")[1:]]
    pair = render_pair(tokenizer, shared[:1], chosen, rejected)
    assert pair.prompt_ids == render_prompt(tokenizer, shared)
    with pytest.raises(UsageError, match="more than their last answer"):
        render_pair(tokenizer, shared[:1], chosen, [*talk("", "other", "more?", "no")[1:]])


def test_system_default_is_part_of_the_template_and_never_grows(tokenizer: Any, tiny: Path) -> None:
    with_system = load_tokenizer(tiny, system="")
    assert render_text(with_system, talk("q")) == "<|system|>\n</s>\n<|user|>\nq</s>\n"
    told = [Message(role="system", content="be kind"), *talk("q")]
    assert render_text(with_system, told).count("<|system|>") == 1
    once = with_system_default(zephyr_template(), 'it\'s\n"one" \\ two')
    assert with_system_default(once, None) == zephyr_template()
    assert with_system_default(once, "x") == with_system_default(zephyr_template(), "x")
    with_system.chat_template = once
    assert render_text(with_system, talk("q")).startswith('<|system|>\nit\'s\n"one" \\ two</s>\n<|user|>')
    told_nothing = [Message(role="system", content=""), *talk("q", "a")]
    plain = render_dialogue(tokenizer, told_nothing)
    with_system.chat_template = with_system_default(zephyr_template(), "")
    assert plain.input_ids == render_dialogue(with_system, talk("q", "a")).input_ids
    assert template_digest(tokenizer) != template_digest(with_system)


def test_a_template_without_an_end_is_refused(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] ~ ':' ~ m['content'] ~ '\n' }}{% endfor %}"
    with pytest.raises(UsageError, match="never learn to stop"):
        render_dialogue(tokenizer, talk("a", "b"))


def test_a_template_that_rewrites_history_is_refused(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    turn = "{{ ('' if not loop.last else '[last]') ~ m['content'] ~ eos_token }}"
    tokenizer.chat_template = "{% for m in messages %}" + turn + "{% endfor %}"
    with pytest.raises(UsageError, match="earlier turns differently"):
        render_dialogue(tokenizer, talk("a", "b", "c", "d"))


def test_the_templates_own_complaint_is_told(tokenizer: Any, tiny: Path) -> None:
    strict = load_tokenizer(tiny)
    strict.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(UsageError, match="no system turns here"):
        render_prompt(strict, talk("a"))


def test_spelled_out_special_tokens_are_seen(tokenizer: Any) -> None:
    assert special_tokens_in(tokenizer, talk("say </s> now", "ok")) == ["</s>"]
    assert special_tokens_in(tokenizer, talk("say s now", "ok")) == []


def test_a_tokenizer_without_a_template_gets_zephyrs(make_tiny: Any, tmp_path: Path) -> None:
    bare = load_tokenizer(make_tiny(tmp_path / "bare", template=False))
    assert bare.chat_template == zephyr_template()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}', encoding="utf-8")
    with pytest.raises(EnvironmentFault, match="tokenizer"):
        load_tokenizer(tmp_path)
