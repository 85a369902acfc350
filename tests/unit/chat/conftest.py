"""Tokenizers of the families of models whose templates are tested: byte-level, with each family's special tokens."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAMILIES: dict[str, tuple[list[str], str, str | None]] = {
    # special tokens; the end-of-sequence token; the beginning-of-sequence token
    "mistral": (["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], "</s>", "<s>"),
    "llama": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|end_of_text|>",
        "<|begin_of_text|>",
    ),
    "gemma": (["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<eos>", "<bos>"),
    "qwen": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", None),
    "olmo": (["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"], "<|endoftext|>", None),
    "deepseek": (
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"],
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
    ),
    "phi": (["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], "<|endoftext|>", None),
}


FAMILIES["many"] = (
    [
        *("<EOS>", "<BOS>", "<|END_OF_TURN_TOKEN|>", "<|END_RESPONSE|>", "<turn|>", "<|return|>", "<|eot|>"),
        *dict.fromkeys(token for tokens, _, _ in FAMILIES.values() for token in tokens),
    ],
    "<EOS>",
    "<BOS>",
)


def _trl_folder() -> Path:
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("TRL is not installed")
    return Path(spec.submodule_search_locations[0]) / "chat_templates"


@pytest.fixture(scope="session")
def trl_names() -> list[str]:
    """The names of all chat templates that the installed TRL ships."""
    return sorted(path.stem for path in _trl_folder().glob("*.jinja"))


@pytest.fixture(scope="session")
def trl_template() -> Callable[[str], str]:
    """The text of a chat template that the installed TRL ships, by its name."""
    folder = _trl_folder()

    def read(name: str) -> str:
        path = folder / f"{name}.jinja"
        if not path.is_file():
            pytest.skip(f"this TRL ships no template {name}")
        return path.read_text(encoding="utf-8")

    return read


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder with a family's tokenizer, with or without a chat template; `rstrip`: its special tokens swallow
    the white space behind them, as Phi 3's do."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    def write(family: str, template: Any = None, *, rstrip: bool = False) -> Path:
        special, eos, bos = FAMILIES[family]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
        merges = [("Ċ", "Ċ"), ("h", "e"), ("Ġ", "t")]
        for left, right in merges:
            vocabulary[left + right] = len(vocabulary)
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [AddedToken(one, normalized=False, special=True, rstrip=rstrip) for one in special]
        )
        folder = tmp_path / family
        folder.mkdir(exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": eos,
            "bos_token": bos,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
        }
        if template is not None:
            settings["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return folder

    return write
