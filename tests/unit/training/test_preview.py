"""Previews: every token shown, in runs that are treated alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.chat.rules import TokenRules
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.events import Preview, plain
from zephyrctl.records import Message, PreferenceRow, SftRow
from zephyrctl.training.preview import Mark, preview_dialogues, preview_pairs, segments
from zephyrctl.training.tokens import pair_tokens, sft_tokens


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


def dialogue(*texts: str) -> tuple[str, SftRow]:
    turns = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]
    return ("f:1", SftRow(row_id="1", prompt_id="1", messages=turns))


def shown(tokenizer: Any, row: tuple[str, SftRow], **changes: Any) -> Preview:
    chosen: dict[str, Any] = {"max_length": 500, "rules": TokenRules(), "truncation": "keep_start", **changes}
    return next(preview_dialogues([row], tokenizer, **chosen))


def test_loss_is_on_answers_and_what_closes_them(tokenizer: Any) -> None:
    made = shown(tokenizer, dialogue("hi", "yo the", "more?", "no"))
    (name, found), *others = made.sides
    assert (name, others, made.dropped) == ("dialogue", [], "")
    assert [(s.text, s.bears_loss, s.special) for s in found] == [
        ("<|user|>\nhi", False, False), ("</s>", False, True), ("\n<|assistant|>\n", False, False),
        ("yo the", True, False), ("</s>", True, True), ("\n<|user|>\nmore?", False, False),
        ("</s>", False, True), ("\n<|assistant|>\n", False, False), ("no", True, False), ("</s>", True, True),
        ("\n", False, False),
    ]  # fmt: skip


@pytest.mark.parametrize("truncation", ["keep_start", "keep_end"])
def test_what_is_cut_is_marked_and_the_rest_is_what_is_trained(tokenizer: Any, truncation: Any) -> None:
    row = dialogue("hi", "a long answer of many tokens")
    trained = sft_tokens([row], tokenizer, max_length=30, truncation=truncation).rows[0]
    found = shown(tokenizer, row, max_length=30, truncation=truncation).sides[0][1]
    kept = [s for s in found if not s.cut]
    assert sum(s.tokens for s in kept) == 30 == trained.length
    assert sum(s.tokens for s in kept if s.bears_loss) == sum(label != -100 for label in trained.labels)
    assert "".join(s.text for s in kept) == tokenizer.decode(trained.input_ids)
    assert found[-1 if truncation == "keep_start" else 0].cut
    assert not any(s.bears_loss for s in found if s.cut)


def test_rows_left_out_say_why(tokenizer: Any) -> None:
    assert shown(tokenizer, dialogue("hi", "yes"), max_length=8).dropped == "no answer token within 8"
    twice = SftRow(row_id="1", prompt_id="1", messages=[Message(role="user", content="q")] * 2 + [
        Message(role="assistant", content="a")])  # fmt: skip
    tokenizer = load_tokenizer(Path(tokenizer.name_or_path))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.index0 == 1 and m.role == 'user' %}{{ raise_exception('turns') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    made = shown(tokenizer, ("f:9", twice))
    assert made.sides == ()
    assert "turns" in made.dropped


def test_pairs_show_both_sides(tokenizer: Any) -> None:
    row = PreferenceRow(
        prompt_id="1",
        prompt=[Message(role="user", content="question " * 8)],
        chosen=[Message(role="assistant", content="c" * 40)],
        rejected=[Message(role="assistant", content="r")],
    )
    limits: dict[str, Any] = {"max_length": 60, "max_prompt_length": 40, "rules": TokenRules()}
    made = next(preview_pairs([("p:3", row)], tokenizer, **limits))
    trained = pair_tokens([("p:3", row)], tokenizer, **limits).rows[0]
    assert [name for name, _ in made.sides] == ["chosen", "rejected"]
    for name, found in made.sides:
        kept = "".join(s.text for s in found if not s.cut)
        assert kept == tokenizer.decode([*trained.prompt_ids, *getattr(trained, f"{name}_ids")])
        assert sum(s.tokens for s in found if s.bears_loss) == len(getattr(trained, f"{name}_ids"))
    chosen, rejected = (found for _, found in made.sides)
    assert [chosen[0].cut, chosen[-1].cut, rejected[0].cut, rejected[-1].cut] == [True, True, True, False]
    body = plain(made)
    assert body["where"] == "p:3"
    assert [name for name, _ in body["sides"]] == ["chosen", "rejected"]
    assert body["sides"][0][1][0].keys() == {"text", "bears_loss", "tokens", "special", "cut"}


@settings(deadline=None)
@given(st.text(alphabet="ab the\n é你", min_size=1, max_size=30), st.data())
def test_the_texts_put_together_are_the_whole_text(tokenizer: Any, text: str, data: st.DataObject) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    marks = [Mark(data.draw(st.booleans()), data.draw(st.booleans())) for _ in ids]
    found = segments(tokenizer, ids, marks)
    assert sum(s.tokens for s in found) == len(ids)
    if text.isascii():
        assert "".join(s.text for s in found) == text
