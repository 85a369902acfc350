"""The shipped base model: tokenizer, chat template, size, and a short rebuild."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.sandbox.build_base import (
    BASE_DIR,
    CONTEXT,
    ROLE_MARKERS,
    SPECIAL,
    BaseSettings,
    train_tokenizer,
)

tokenizers = pytest.importorskip("tokenizers")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Sort these words: pear fig"},
    {"role": "assistant", "content": "fig pear"},
    {"role": "user", "content": "Now in reverse order."},
]
GOLDEN = (
    "<|system|>\nBe brief.</s>\n<|user|>\nSort these words: pear fig</s>\n<|assistant|>\nfig pear</s>\n"
    "<|user|>\nNow in reverse order.</s>\n"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizers.Tokenizer.from_file(str(BASE_DIR / "tokenizer.json"))


def config(name: str) -> Any:
    return json.loads((BASE_DIR / name).read_text(encoding="utf-8"))


def render(messages: list[dict[str, str]], *, prompt: bool) -> str:
    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.globals["raise_exception"] = refuse
    template = environment.from_string((BASE_DIR / "chat_template.jinja").read_text(encoding="utf-8"))
    return template.render(messages=messages, add_generation_prompt=prompt, eos_token="</s>")


def test_the_folder_is_small_and_whole() -> None:
    names = {path.name for path in BASE_DIR.iterdir()}
    needed = (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    )
    assert names.issuperset(needed)
    assert "chat_template.jinja" in names
    assert sum(path.stat().st_size for path in BASE_DIR.iterdir()) <= 4 * 1024 * 1024


def test_the_model_is_a_bf16_mistral_with_a_long_context() -> None:
    model = config("config.json")
    assert model["architectures"] == ["MistralForCausalLM"]
    assert model["dtype"] == "bfloat16"
    assert (
        model["max_position_embeddings"]
        == CONTEXT
        == config("tokenizer_config.json")["model_max_length"]
        == 2048
    )
    assert model["sliding_window"] is None
    assert model["tie_word_embeddings"] is True
    tokens = {"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<pad>"}
    assert {name: SPECIAL[model[name]] for name in tokens} == tokens
    assert model["vocab_size"] == BaseSettings().vocabulary


@given(st.text())
@settings(deadline=None, max_examples=300)
def test_any_text_comes_back_from_its_tokens(text: str) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(BASE_DIR / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert max(ids, default=0) < config("config.json")["vocab_size"]


def test_nothing_is_added_and_markers_are_single_tokens(tokenizer: Any) -> None:
    assert tokenizer.encode("fig").tokens == ["fig"]
    assert tokenizer.encode("").ids == []
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3]
    for marker in (*ROLE_MARKERS, "</s>"):
        assert tokenizer.encode(marker).tokens == [marker]
    assert tokenizer.encode("What is 17 + 5?").tokens[-5:] == ["Ġ1", "7", "Ġ+", "Ġ5", "?"]
    markers = tokenizer.encode("".join(ROLE_MARKERS)).ids
    assert tokenizer.decode(markers, skip_special_tokens=True) == "".join(ROLE_MARKERS)


def test_the_chat_template_is_zephyrs() -> None:
    assert render(CHAT, prompt=False) == GOLDEN
    assert render(CHAT, prompt=True) == GOLDEN + "<|assistant|>\n"
    assert render([], prompt=False) == ""
    with pytest.raises(ValueError, match="unknown role: tool"):
        render([{"role": "tool", "content": "x"}], prompt=False)


def test_the_chat_template_keeps_white_space_in_content() -> None:
    assert render([{"role": "user", "content": " a\n\n b "}], prompt=False) == "<|user|>\n a\n\n b </s>\n"


def test_golden_token_ids(tokenizer: Any) -> None:
    tokens = tokenizer.encode(render(CHAT[1:3], prompt=False)).tokens
    user = ["<|user|>", "Ċ", "Sort", "Ġthese", "Ġwords", ":", "Ġpear", "Ġfig", "</s>", "Ċ"]
    assert tokens == [*user, "<|assistant|>", "Ċ", "fig", "Ġpear", "</s>", "Ċ"]


@pytest.fixture(scope="module")
def rebuilt() -> Any:
    return train_tokenizer(BaseSettings())


def test_the_tokenizer_is_rebuilt_to_the_byte(rebuilt: Any, tokenizer: Any) -> None:
    assert rebuilt.to_str() == tokenizer.to_str()


def test_a_short_build_is_repeatable(rebuilt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from zephyrctl.sandbox import build_base

    monkeypatch.setattr(build_base, "train_tokenizer", lambda settings: rebuilt)
    tiny = BaseSettings(steps=3, batch=4, hidden=32, layers=2, heads=2, intermediate=64, threads=1)
    for name in ("one", "two"):
        build_base.build(tmp_path / name, tiny)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in BASE_DIR.iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    for name in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        assert (tmp_path / "one" / name).read_bytes() == (BASE_DIR / name).read_bytes(), name
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "one")
    assert (
        loaded.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        == GOLDEN + "<|assistant|>\n"
    )
    assert (loaded.eos_token, loaded.pad_token, loaded.model_max_length) == ("</s>", "<pad>", CONTEXT)
    assert set(loaded("fig")) == {"input_ids", "attention_mask"}
    assert loaded("fig")["input_ids"] == loaded.convert_tokens_to_ids(["fig"])
