"""Templates of today's models: what each renders, which tokens bear loss, where training cannot equal generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.chat.lint import lint, read_marks
from zephyrctl.chat.render import (
    closing_ids,
    render_dialogue,
    render_pair,
    render_prompt,
    render_text,
    special_tokens_in,
)
from zephyrctl.chat.rules import TokenRules
from zephyrctl.chat.tokenizer import load_tokenizer, stop_ids
from zephyrctl.errors import UsageError
from zephyrctl.records import Message

Folder = Callable[..., Path]
Shipped = Callable[[str], str]

OLMO = (
    "{%- if not messages or messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\nYou are helpful. <functions></functions><|im_end|>\n' -}}{%- endif -%}"
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\n' + m['content'] -}}"
    "{%- if m['role'] != 'assistant' or not loop.last -%}{{- '<|im_end|>\n' -}}"
    "{%- else -%}{{- eos_token -}}{%- endif -%}"
    "{%- if loop.last and add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}{%- endfor -%}"
)
"""A stand-in for OLMo 3's format, as its card describes it: ChatML turns, a system turn of its own where none is given,
and the end-of-text token behind a dialogue's last answer."""


def user(text: str) -> Message:
    return Message(role="user", content=text)


def bot(text: str) -> Message:
    return Message(role="assistant", content=text)


def system(text: str) -> Message:
    return Message(role="system", content=text)


def borne(tokenizer: Any, messages: list[Message]) -> str:
    rendered = render_dialogue(tokenizer, messages)
    return str(
        tokenizer.decode([i for i, m in zip(rendered.input_ids, rendered.loss_mask, strict=True) if m])
    )


def round_trip(tokenizer: Any, messages: list[Message]) -> None:
    """The last answer stands behind exactly what a model would be given, and all is the template's text."""
    rendered = render_dialogue(tokenizer, messages)
    prompt = render_prompt(tokenizer, messages[:-1])
    assert rendered.input_ids[: len(prompt)] == prompt
    assert not rendered.loss_mask[len(prompt) - 1]
    assert rendered.loss_mask[len(prompt)]
    assert tokenizer.decode(rendered.input_ids) == render_text(tokenizer, messages)


TWO = [user("q1"), bot("a1"), user("q2"), bot("a2")]


def test_llama_3_golden(tokenizer_folder: Folder, trl_template: Shipped) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("llama", trl_template("llama3")))
    turn = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>".format
    want = "<|begin_of_text|>" + turn("user", "q1") + turn("assistant", "a1") + turn("user", "q2")
    assert render_text(tokenizer, TWO) == want + turn("assistant", "a2")
    assert borne(tokenizer, TWO) == "a1<|eot_id|>a2<|eot_id|>"
    assert borne(tokenizer, [user("q"), bot("  padded ")]) == "padded<|eot_id|>", "the template trims"
    assert render_dialogue(tokenizer, TWO).input_ids.count(tokenizer.bos_token_id) == 1
    round_trip(tokenizer, TWO)


def test_llama_closes_with_another_token_than_the_tokenizers_end(
    tokenizer_folder: Folder, trl_template: Shipped
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("llama", trl_template("llama3")))
    eot, end = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    assert closing_ids(tokenizer) == [eot]
    assert stop_ids(tokenizer) == [end, eot]
    assert stop_ids(tokenizer, [7, eot]) == [end, 7, eot]
    assert stop_ids(tokenizer, 7) == [end, 7, eot]


@pytest.mark.parametrize(("name", "told"), [("llama3_1", "26 Jul 2024"), ("llama3_2", "26 Jul 2024")])
def test_the_day_in_llamas_templates_is_pinned(
    tokenizer_folder: Folder, trl_template: Shipped, name: str, told: str
) -> None:
    folder = tokenizer_folder("llama", trl_template(name))
    tokenizer = load_tokenizer(folder)
    assert f"Today Date: {told}\n\n<|eot_id|>" in render_text(tokenizer, TWO)
    assert borne(tokenizer, TWO) == "a1<|eot_id|>a2<|eot_id|>"
    round_trip(tokenizer, TWO)
    other = load_tokenizer(folder, date="2031-02-03")
    assert "Today Date: 03 Feb 2031\n" in render_text(other, TWO)
    other.save_pretrained(folder)
    again = load_tokenizer(folder)
    assert again.chat_template == other.chat_template, "the saved model keeps the day it was trained with"
    assert load_tokenizer(folder, date="2024-07-26").chat_template.count("pinned date") == 2
    with pytest.raises(UsageError, match="YYYY-MM-DD"):
        load_tokenizer(folder, date="tomorrow")


def test_a_day_in_another_form_is_pinned_too(tokenizer_folder: Folder, trl_template: Shipped) -> None:
    turns = "{% for m in messages %}{{ m['role'] ~ m['content'] ~ eos_token }}{% endfor %}"
    asking = "{{ strftime_now('%Y') ~ '/' ~ strftime_now( \"%B\" ) }}"
    tokenizer = load_tokenizer(tokenizer_folder("mistral", asking + turns))
    assert render_text(tokenizer, [user("x")]).startswith("2024/July")
    with pytest.raises(UsageError, match="cannot be pinned"):
        load_tokenizer(tokenizer_folder("mistral", "{% set f = '%Y' %}{{ strftime_now(f) }}" + turns))


def test_gemma_without_a_system_role_joins_the_text_to_the_first_user_turn(
    tokenizer_folder: Folder, trl_template: Shipped
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("gemma", trl_template("gemma")))
    golden = "<bos><start_of_turn>user\nbe kind\n\nq1<end_of_turn>\n<start_of_turn>model\na1<end_of_turn>\n"
    assert render_text(tokenizer, [system("be kind"), *TWO[:2]]) == golden
    assert borne(tokenizer, [system("be kind"), *TWO]) == "a1<end_of_turn>a2<end_of_turn>"
    assert render_text(tokenizer, [system(""), user("q")]) == render_text(tokenizer, [user("q")])
    round_trip(tokenizer, [system("be kind"), *TWO])
    assert render_text(tokenizer, TWO) in golden.replace("be kind\n\n", "") + render_text(tokenizer, TWO)
    eos, end = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    assert stop_ids(tokenizer) == [eos, end]
    with pytest.raises(UsageError, match="System role not supported"):
        render_text(tokenizer, [system("alone")])
    with pytest.raises(UsageError, match="must alternate"):
        render_dialogue(tokenizer, [user("a"), user("b"), bot("c")])


def test_a_default_system_turn_joins_too(tokenizer_folder: Folder, trl_template: Shipped) -> None:
    folder = tokenizer_folder("gemma", trl_template("gemma"))
    tokenizer = load_tokenizer(folder, system="be kind")
    assert render_text(tokenizer, [user("q")]) == "<bos><start_of_turn>user\nbe kind\n\nq<end_of_turn>\n"
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(folder).chat_template == tokenizer.chat_template
    assert "be brief\n\nq" in render_text(load_tokenizer(folder, system="be brief"), [user("q")])


def test_gemma_3_joins_the_system_text_itself(tokenizer_folder: Folder, trl_template: Shipped) -> None:
    own = trl_template("gemma3")
    tokenizer = load_tokenizer(tokenizer_folder("gemma", own))
    assert tokenizer.chat_template == own
    assert (
        render_text(tokenizer, [system("s"), user("q")]) == "<bos><start_of_turn>user\ns\n\nq<end_of_turn>\n"
    )
    assert borne(tokenizer, [system("s"), *TWO]) == "a1<end_of_turn>a2<end_of_turn>"


def test_qwen_3_empty_thinking_is_learned_and_rewritten_history_bears_no_loss(
    tokenizer_folder: Folder, trl_template: Shipped
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("qwen", trl_template("qwen3")))
    head = "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"
    last = "<think>\n\n</think>\n\na2<|im_end|>"
    rendered = render_dialogue(tokenizer, TWO)
    assert rendered.text == (
        f"{head}a1<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n{last}\n"
    )
    # where a1 was the last answer, its empty thinking block stood before it: as history it is another text
    assert render_text(tokenizer, TWO[:2]) == f"{head}<think>\n\n</think>\n\na1<|im_end|>\n"
    assert borne(tokenizer, TWO) == last
    assert rendered.rewritten == 1
    assert borne(tokenizer, TWO[:2]) == "<think>\n\n</think>\n\na1<|im_end|>"
    assert render_dialogue(tokenizer, TWO[:2]).rewritten == 0
    round_trip(tokenizer, TWO)
    with pytest.raises(UsageError, match="earlier turns differently"):
        render_dialogue(tokenizer, TWO[:3])


def test_qwen_3_thinking_in_the_answer(tokenizer_folder: Folder, trl_template: Shipped) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("qwen", trl_template("qwen3")))
    thought = bot("<think>\nhm\n</think>\n\nyes")
    assert borne(tokenizer, [user("q"), thought]) == "<think>\nhm\n</think>\n\nyes<|im_end|>"
    later = render_dialogue(tokenizer, [user("q"), thought, user("r"), bot("no")])
    assert "hm" not in later.text
    assert later.rewritten == 1


def test_qwen_3_told_not_to_think_has_the_empty_block_in_its_prompt(
    tokenizer_folder: Folder, trl_template: Shipped, tmp_path: Path
) -> None:
    silent = tmp_path / "silent.jinja"
    silent.write_text("{%- set enable_thinking = false -%}" + trl_template("qwen3"), encoding="utf-8")
    tokenizer = load_tokenizer(tokenizer_folder("qwen"), template=str(silent))
    assert render_text(tokenizer, TWO[:1], generate=True).endswith("assistant\n<think>\n\n</think>\n\n")
    assert borne(tokenizer, TWO[:2]) == "a1<|im_end|>"
    round_trip(tokenizer, TWO)


@pytest.mark.parametrize("name", ["qwen3_instruct_2507", "qwen2_5"])
def test_qwen_without_thinking_trains_every_answer(
    tokenizer_folder: Folder, trl_template: Shipped, name: str
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("qwen", trl_template(name)))
    assert borne(tokenizer, TWO) == "a1<|im_end|>a2<|im_end|>"
    assert render_dialogue(tokenizer, TWO).rewritten == 0
    round_trip(tokenizer, TWO)


def test_olmo_3_closes_its_last_answer_otherwise(tokenizer_folder: Folder) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("olmo", OLMO))
    text = render_text(tokenizer, TWO)
    assert text.startswith(
        "<|im_start|>system\nYou are helpful. <functions></functions><|im_end|>\n<|im_start|>user\n"
    )
    assert text.endswith("<|im_start|>assistant\na2<|endoftext|>")
    assert borne(tokenizer, TWO) == "a1<|im_end|>a2<|endoftext|>"
    assert render_dialogue(tokenizer, TWO).rewritten == 0
    end, im_end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert closing_ids(tokenizer) == [end, im_end]
    assert stop_ids(tokenizer) == [end, im_end]
    round_trip(tokenizer, TWO)


def test_a_template_that_begins_the_models_thinking_is_refused_for_answers_without(
    tokenizer_folder: Folder, trl_template: Shipped
) -> None:
    thinking = OLMO.replace(
        "add_generation_prompt -%}{{- '<|im_start|>assistant\n",
        "add_generation_prompt -%}{{- '<|im_start|>assistant\n<think>",
    )
    tokenizer = load_tokenizer(tokenizer_folder("olmo", thinking))
    with pytest.raises(UsageError, match="opens an answer differently"):
        render_dialogue(tokenizer, TWO)
    thought = [user("q"), bot("<think>hm</think>yes")]
    assert borne(tokenizer, thought) == "hm</think>yes<|endoftext|>"


def test_mistral_instruct_closes_with_its_end_token(tokenizer_folder: Folder) -> None:
    own = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
        "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
    )
    tokenizer = load_tokenizer(tokenizer_folder("mistral", own))
    assert render_text(tokenizer, TWO) == "<s>[INST] q1 [/INST] a1</s>[INST] q2 [/INST] a2</s>"
    assert borne(tokenizer, TWO) == " a1</s> a2</s>"
    assert render_text(tokenizer, [system("s"), user("q")]) == "<s>[INST] s\n\nq [/INST]"


def test_a_token_behind_the_closing_one_is_no_part_of_the_answer(
    tokenizer_folder: Folder, trl_template: Shipped
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("phi", trl_template("phi3")))
    assert render_text(tokenizer, TWO).endswith("a2<|end|>\n<|endoftext|>")
    assert borne(tokenizer, TWO) == "a1<|end|>a2<|end|>"
    assert stop_ids(tokenizer) == tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|end|>"])
    pair = render_pair(tokenizer, [user("q")], [bot("yes")], [bot("no")])
    assert tokenizer.decode(pair.chosen_ids) == "yes<|end|>"


def test_special_tokens_that_swallow_the_space_behind_them(
    tokenizer_folder: Folder, trl_template: Shipped
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("phi", trl_template("phi3"), rstrip=True))
    assert borne(tokenizer, TWO) == "a1<|end|>a2<|end|>"
    rendered = render_dialogue(tokenizer, TWO)
    prompt = render_prompt(tokenizer, TWO[:3])
    assert rendered.input_ids[: len(prompt)] == prompt
    assert not rendered.resegmented


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseekv3"])
def test_deepseeks_templates_open_the_thinking_only_for_generation(
    tokenizer_folder: Folder, trl_template: Shipped, name: str
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("deepseek", trl_template(name)))
    with pytest.raises(UsageError, match="opens an answer differently") as info:
        render_dialogue(tokenizer, TWO)
    assert "--chat-template" in str(info.value.hint)


def test_special_tokens_spelled_in_a_text_are_all_seen(tokenizer_folder: Folder) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("llama"))
    said = [user("stop <|eot_id|> now <|end_of_text|>"), bot("<|eot_id|> fine")]
    assert special_tokens_in(tokenizer, said) == ["<|end_of_text|>", "<|eot_id|>"]
    assert special_tokens_in(tokenizer, [user("<|eot_id >")]) == []


@pytest.mark.parametrize(
    ("family", "name"),
    [("llama", "llama3"), ("gemma", "gemma"), ("qwen", "qwen3"), ("qwen", "qwen3_instruct_2507")],
)
def test_pairs_share_the_prompt_that_generation_is_given(
    tokenizer_folder: Folder, trl_template: Shipped, family: str, name: str
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder(family, trl_template(name)))
    pair = render_pair(tokenizer, TWO[:3], [bot("yes")], [bot("no")])
    assert pair.prompt_ids == render_prompt(tokenizer, TWO[:3])
    assert tokenizer.decode(pair.chosen_ids).endswith("yes" + tokenizer.decode(closing_ids(tokenizer)))
    shared = render_text(tokenizer, [*TWO[:3], bot("no")])
    assert shared.startswith(tokenizer.decode(pair.prompt_ids + pair.rejected_ids))


def test_a_hostile_template_does_not_leave_the_sandbox(tokenizer_folder: Folder) -> None:
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UsageError, match="refuses"):
        render_text(load_tokenizer(tokenizer_folder("mistral", escape)), [user("x")])


@pytest.mark.slow
def test_every_template_that_trl_ships_is_trained_as_generated_or_refused(
    tokenizer_folder: Folder, trl_names: list[str], trl_template: Shipped
) -> None:
    trained, refused = [], []
    for name in trl_names:
        tokenizer = load_tokenizer(tokenizer_folder("many", trl_template(name)))
        try:
            rendered = render_dialogue(tokenizer, TWO)
        except UsageError:
            refused.append(name)
            continue
        trained.append(name)
        round_trip(tokenizer, TWO[:2] if rendered.resegmented else TWO)
        assert lint(rendered.input_ids, rendered.loss_mask, read_marks(tokenizer), TokenRules()) == [], name
        text = borne(tokenizer, TWO)
        assert ("a1" in text) == (rendered.rewritten == 0), name
        assert text.endswith("a2" + tokenizer.decode(closing_ids(tokenizer)[:1])), name
        assert "q2" not in text, name
    assert {"llama3", "gemma3", "qwen3", "qwen3_instruct_2507", "phi3", "gptoss"} <= {*trained}
    assert {"deepseek_r1_distill"} <= {*refused}


@pytest.mark.parametrize(
    ("family", "name", "told"),
    [
        ("llama", "llama3_2", {"date": "2030-05-06"}),
        ("gemma", "gemma", {"system": "be kind"}),
        ("qwen", "qwen3", {}),
        ("mistral", None, {"bos": True, "system": ""}),
    ],
)
def test_whoever_loads_the_saved_tokenizer_renders_the_same(
    tokenizer_folder: Folder,
    trl_template: Shipped,
    tmp_path: Path,
    family: str,
    name: str | None,
    told: dict[str, Any],
) -> None:
    from transformers import AutoTokenizer

    ours = load_tokenizer(tokenizer_folder(family, trl_template(name) if name else None), **told)
    ours.save_pretrained(tmp_path / "saved")
    plain = AutoTokenizer.from_pretrained(str(tmp_path / "saved"), local_files_only=True)
    turns = [{"role": m.role, "content": m.content} for m in TWO[:3]]
    ids = plain.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)["input_ids"]
    assert ids == render_prompt(ours, TWO[:3])
    assert ids == render_prompt(load_tokenizer(tmp_path / "saved"), TWO[:3])
