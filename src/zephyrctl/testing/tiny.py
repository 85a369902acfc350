"""A random tiny Mistral with a byte-level tokenizer, made in a second: 2 layers of 64, about 300 tokens.

For tests that need a real model folder and care about nothing it knows.
"""

from __future__ import annotations

import json
from pathlib import Path

SPECIAL = ("<s>", "</s>", "<unk>", "<pad>")


def make_tiny(folder: Path, *, seed: int = 0, template: bool = True, tied: bool = True) -> Path:
    """Writes the model folder and returns it.

    `template`: whether it has a chat template; `tied`: whether input and output embeddings are one matrix.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    merges = []
    for left, right in [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("o", "r"), ("Ġ", "a"), ("Ċ", "Ċ")]:
        merges.append((left, right))
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        sliding_window=None,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=3,
    )
    folder.mkdir(parents=True, exist_ok=True)
    MistralForCausalLM(config).save_pretrained(folder)
    GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=3).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        **dict(zip(("bos_token", "eos_token", "unk_token", "pad_token"), SPECIAL, strict=True)),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if template:
        from zephyrctl.chat.render import zephyr_template

        (folder / "chat_template.jinja").write_text(zephyr_template(), encoding="utf-8")
    return folder
