"""What a recipe decides beyond the template: BOS, loss on all, how an answer ends, where it begins; and the faults that
are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.chat.lint import FAULTS, lint, read_marks
from zephyrctl.chat.render import (
    PairTurns,
    Rendered,
    RenderedPair,
    render_dialogue,
    render_dialogues,
    render_pair,
    render_pairs,
    render_prompt,
    render_text,
)
from zephyrctl.chat.rules import TokenRules
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import UsageError
from zephyrctl.records import Message

Q = [Message(role="user", content="q")]
YES, NO = [Message(role="assistant", content="yes")], [Message(role="assistant", content="no")]


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


def test_bos_is_put_in_front_once(tokenizer: Any, tokenizer_folder: Any, trl_template: Any) -> None:
    rules = TokenRules(bos=True)
    plain, begun = render_dialogue(tokenizer, Q + YES), render_dialogue(tokenizer, Q + YES, rules=rules)
    assert begun.input_ids == [tokenizer.bos_token_id, *plain.input_ids]
    assert begun.loss_mask == [False, *plain.loss_mask]
    assert render_prompt(tokenizer, Q, rules=rules)[:2] == begun.input_ids[:2]
    pair = render_pair(tokenizer, Q, YES, NO, rules=rules)
    assert pair.prompt_ids == render_prompt(tokenizer, Q, rules=rules)
    llama = load_tokenizer(tokenizer_folder("llama", trl_template("llama3")))
    assert render_dialogue(llama, Q + YES, rules=rules) == render_dialogue(llama, Q + YES)
    with pytest.raises(UsageError, match="no beginning-of-sequence"):
        render_prompt(load_tokenizer(tokenizer_folder("qwen")), Q, rules=rules)


def test_bos_can_be_pinned_in_the_template(tiny: Path, tmp_path: Path, tokenizer_folder: Any) -> None:
    begun = load_tokenizer(tiny, bos=True, system="")
    assert render_text(begun, Q) == "<s><|system|>\n</s>\n<|user|>\nq</s>\n"
    plain = load_tokenizer(tiny, system="")
    rules = TokenRules(bos=True)
    assert render_dialogue(begun, Q + YES, rules=rules).input_ids == render_dialogue(begun, Q + YES).input_ids
    assert render_dialogue(plain, Q + YES, rules=rules).input_ids == render_dialogue(begun, Q + YES).input_ids
    begun.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, bos=True).chat_template == begun.chat_template
    with pytest.raises(UsageError, match="no beginning-of-sequence"):
        load_tokenizer(tokenizer_folder("qwen"), bos=True)


def test_loss_on_all_tokens(tokenizer: Any) -> None:
    rendered = render_dialogue(tokenizer, Q + YES, rules=TokenRules(loss_on="all"))
    assert rendered.input_ids == render_dialogue(tokenizer, Q + YES).input_ids
    assert rendered.labels == rendered.input_ids
    assert all(rendered.loss_mask)


@pytest.mark.parametrize(
    ("close", "ending"), [("eos", "</s>"), ("template", "</s>\n"), ("template+eos", "</s>\n</s>")]
)
def test_how_an_answer_ends(tokenizer: Any, close: Any, ending: str) -> None:
    pair = render_pair(tokenizer, Q, YES, NO, rules=TokenRules(close=close))
    assert tokenizer.decode(pair.chosen_ids) == "yes" + ending
    assert tokenizer.decode(pair.rejected_ids) == "no" + ending


def test_the_header_in_the_answer(tokenizer: Any) -> None:
    pair = render_pair(tokenizer, Q, YES, NO, rules=TokenRules(header_in_answer=True))
    plain = render_pair(tokenizer, Q, YES, NO)
    assert tokenizer.decode(pair.prompt_ids) == "<|user|>\nq</s>\n"
    assert tokenizer.decode(pair.chosen_ids) == "<|assistant|>\nyes</s>"
    assert pair.prompt_ids + pair.chosen_ids == plain.prompt_ids + plain.chosen_ids


def test_what_the_second_handbook_trained_on(tokenizer: Any) -> None:
    rules = TokenRules(bos=True, close="template+eos", header_in_answer=True)
    told = [Message(role="system", content=""), *Q]
    pair = render_pair(tokenizer, told, YES, NO, rules=rules)
    assert tokenizer.decode(pair.prompt_ids) == "<s><|system|>\n</s>\n<|user|>\nq</s>\n"
    assert tokenizer.decode(pair.chosen_ids) == "<|assistant|>\nyes</s>\n</s>"


def test_a_side_must_end_with_an_answer(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="does not end with an assistant"):
        render_pair(tokenizer, Q, Q, Q)
    with pytest.raises(UsageError, match="does not end with an assistant"):
        render_pair(tokenizer, Q, [], [])


def test_many_at_once_are_the_same_as_one_by_one_and_errors_stay_apart(
    tokenizer_folder: Any, trl_template: Any
) -> None:
    gemma = load_tokenizer(tokenizer_folder("gemma", trl_template("gemma")))
    dialogues = [Q + YES, Q + Q + NO, Q + NO, Q + YES + Q + NO]
    rows = render_dialogues(gemma, dialogues)
    assert isinstance(rows[1], UsageError)
    assert "alternate" in rows[1].message
    for number in (0, 2, 3):
        assert rows[number] == render_dialogue(gemma, dialogues[number])
    pairs = [PairTurns(Q, YES, NO), PairTurns(Q, YES, Q + NO), PairTurns(Q + YES, Q + NO, Q + YES)]
    out = render_pairs(gemma, pairs)
    assert isinstance(out[1], UsageError)
    assert out[0] == render_pair(gemma, Q, YES, NO)
    assert out[2] == render_pair(gemma, Q + YES, Q + NO, Q + YES)
    assert render_dialogues(gemma, []) == []


PIECES = ["a", "he", " t", "\n", " ", "é", "▁", "</s>", "🙂"]
MARKED = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@pytest.fixture(scope="session", params=["first", "always", "never"])
def sentencepiece(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer as Mistral's: a mark for spaces, no cut between words, bytes for unknown letters."""
    import json

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>"]
    letters = sorted({*"<|>aehstuinrymo\nq▁</"})
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges = [("h", "e"), ("▁", "t"), ("\n", "he"), (">", "\n"), ("a", "▁"), ("▁", "▁")]
    vocabulary = {token: number for number, token in enumerate([*tokens, *(a + b for a, b in merges)])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=request.param, split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(one, normalized=False, special=True) for one in special])
    folder = tmp_path_factory.mktemp("sentencepiece")
    made.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind), encoding="utf-8")
    return load_tokenizer(folder)


@settings(max_examples=80, deadline=None)
@given(question=MARKED, answer=MARKED)
def test_the_prompt_of_generation_is_the_prompt_of_training(
    sentencepiece: Any, question: str, answer: str
) -> None:
    asked, said = Message(role="user", content=question), Message(role="assistant", content=answer)
    prompt = render_prompt(sentencepiece, [asked])
    rendered = render_dialogue(sentencepiece, [asked, said])
    assert rendered.input_ids[: len(prompt)] == prompt
    assert not any(rendered.loss_mask[: len(prompt)])
    borne = [i for i, bears in zip(rendered.input_ids, rendered.loss_mask, strict=True) if bears]
    assert borne[-1] == sentencepiece.eos_token_id
    assert rendered.loss_mask[len(prompt) : len(prompt) + len(borne)] == [True] * len(borne)
    pair = render_pair(sentencepiece, [asked], [said], NO)
    assert (pair.prompt_ids, pair.chosen_ids) == (prompt, borne)


def test_an_answer_tokenised_apart_gets_no_mark_of_a_texts_start(sentencepiece: Any) -> None:
    rendered = render_dialogue(sentencepiece, [*Q, Message(role="assistant", content="he"), *Q, *YES])
    assert rendered.resegmented, "the header's newline and this answer are one token in this vocabulary"
    start = rendered.loss_mask.index(True)
    always = sentencepiece.backend_tokenizer.pre_tokenizer.prepend_scheme == "always"
    tokens = sentencepiece.convert_ids_to_tokens(rendered.input_ids)
    assert tokens[start : start + 4] == (["▁", "he", "</s>", "▁"] if always else ["he", "</s>", "\n", "<"])


def faults_of(tokenizer: Any, row: Rendered | RenderedPair, rules: TokenRules) -> list[str]:
    marks = read_marks(tokenizer)
    if isinstance(row, Rendered):
        return lint(row.input_ids, row.loss_mask, marks, rules)
    bears = [False] * len(row.prompt_ids) + [True] * len(row.chosen_ids)
    return lint(row.prompt_ids + row.chosen_ids, bears, marks, rules)


@pytest.mark.parametrize("close", ["eos", "template", "template+eos"])
@pytest.mark.parametrize("bos", [False, True])
def test_what_is_rendered_has_no_fault(tokenizer: Any, close: Any, bos: bool) -> None:
    rules = TokenRules(bos=bos, close=close)
    assert faults_of(tokenizer, render_pair(tokenizer, Q, YES, NO, rules=rules), rules) == []
    assert faults_of(tokenizer, render_dialogue(tokenizer, Q + YES + Q + NO, rules=rules), rules) == []
    assert (
        faults_of(
            tokenizer, render_dialogue(tokenizer, Q + YES, rules=TokenRules(loss_on="all")), TokenRules()
        )
        == []
    )


def test_each_fault_is_seen(tokenizer: Any) -> None:
    rules, marks = TokenRules(bos=True), read_marks(tokenizer)
    good = render_dialogue(tokenizer, Q + YES, rules=rules)
    ids, mask = good.input_ids, good.loss_mask
    seen = [
        lint(ids[1:], mask[1:], marks, rules),
        lint([*ids[:1], *ids], [False, *mask], marks, rules),
        lint(ids[:-2], mask[:-2], marks, rules),
        lint(ids, [*mask[:-2], False, False], marks, rules),
        lint([], [], marks, TokenRules()),
    ]
    assert seen == [
        ["bos_missing"],
        ["bos_repeated"],
        ["end_unlearned"],
        ["end_unlearned"],
        ["end_unlearned"],
    ]
    doubled = render_pair(tokenizer, Q, YES, NO, rules=TokenRules(close="template+eos"))
    assert faults_of(tokenizer, doubled, TokenRules()) == ["eos_repeated"]
    at_once = RenderedPair(doubled.prompt_ids, [5, *[tokenizer.eos_token_id] * 2], [])
    assert faults_of(tokenizer, at_once, TokenRules()) == ["eos_repeated"]
    assert {name for faults in seen for name in faults} | {"eos_repeated"} == set(FAULTS)


def test_a_closing_token_that_is_context_is_no_repeated_one(tokenizer_folder: Any, trl_template: Any) -> None:
    phi = load_tokenizer(tokenizer_folder("phi", trl_template("phi3")))
    assert faults_of(phi, render_dialogue(phi, Q + YES), TokenRules()) == []
    assert faults_of(phi, render_pair(phi, Q, YES, NO), TokenRules()) == []
