"""What `train.py` trains: models of random weights in Mistral's shape, and made dialogues and pairs whose lengths are
spread as those of real ones."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

SIGMA = 0.75
"""Spread of the logarithm of the lengths; UltraChat's dialogues are about that wide."""
WORDS = 3000
SPECIAL = ("<s>", "</s>", "<unk>", "<pad>")
TEMPLATE_TOKENS = 24
"""Tokens that the chat template adds to a dialogue of two turns, roughly."""

MISTRAL_7B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 8, "vocab_size": 32000}  # fmt: skip
SMALL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 4, "vocab_size": 8192}  # fmt: skip


def lengths(rows: int, mean: float, cap: int, seed: int = 1) -> list[int]:
    """Log-normal lengths, cut at `cap`, whose mean after the cut is `mean`: the location is found by halving."""
    rng = random.Random(seed)
    normal = [rng.gauss(0.0, 1.0) for _ in range(rows)]
    low, high = 0.0, math.log(cap) + 6.0
    for _ in range(60):
        middle = (low + high) / 2
        found = sum(min(cap, math.exp(middle + SIGMA * z)) for z in normal) / rows
        low, high = (middle, high) if found < mean else (low, middle)
    return [max(24, min(cap, round(math.exp(low + SIGMA * z)))) for z in normal]


def words() -> list[str]:
    """Made words, the same every time."""
    rng, found = random.Random(0), set[str]()
    while len(found) < WORDS:
        found.add("".join(rng.choice("aeiou" if i % 2 else "bdfgklmnprst") for i in range(rng.randint(3, 7))))
    return sorted(found)


def write_dialogues(folder: Path, sizes: list[int]) -> Path:
    """A folder with `train.jsonl`: one question and one answer a row, about so many tokens in all."""
    rng, known = random.Random(2), words()

    def said(count: int) -> str:
        return " ".join(rng.choices(known, k=max(2, count)))

    folder.mkdir(parents=True)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for size in sizes:
            question = max(4, size // 4)
            turns = [("user", said(question)), ("assistant", said(size - question - TEMPLATE_TOKENS))]
            messages = [{"role": role, "content": text} for role, text in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    return folder


def write_pairs(folder: Path, sizes: list[int]) -> Path:
    """A folder with `train.jsonl`: prompt and two answers a row; the longer sequence has about so many tokens."""
    rng, known = random.Random(3), words()

    def said(role: str, count: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(rng.choices(known, k=max(2, count)))}]

    folder.mkdir(parents=True)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for size in sizes:
            prompt = max(4, size // 3)
            longer = size - prompt - TEMPLATE_TOKENS
            answers = [said("assistant", longer), said("assistant", int(longer * rng.uniform(0.4, 1.0)))]
            rng.shuffle(answers)
            row = {"prompt": said("user", prompt), "chosen": answers[0], "rejected": answers[1]}
            file.write(json.dumps(row) + "\n")
    return folder


def write_model(folder: Path, sizes: dict[str, int], context: int, *, dtype: str = "float32") -> Path:
    """A model folder of random weights (standard deviation 0.02), with a byte-level tokenizer that knows the words."""
    import torch
    from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        **sizes, max_position_embeddings=max(2048, context), sliding_window=None, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=1, pad_token_id=3,
    )  # fmt: skip
    kind = getattr(torch, dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = MistralForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=3).save_pretrained(folder)
    write_tokenizer(folder, context)
    return folder


def write_tokenizer(folder: Path, context: int) -> None:
    """A byte-level tokenizer trained on the made words, with Zephyr's chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from zephyrctl.chat.render import zephyr_template

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([" " + " ".join(words())] * 2, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        **dict(zip(("bos_token", "eos_token", "unk_token", "pad_token"), SPECIAL, strict=True)),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(zephyr_template(), encoding="utf-8")
