"""Builds the sandbox's tiny base model: `python -m zephyrctl.sandbox.build_base --out DIR --seed 0`.

A byte-level BPE tokenizer of about a thousand tokens and a Mistral-architecture model of four layers,
trained in float32 on the documents of `corpus` for a fixed number of steps, saved in bfloat16 with Zephyr's
chat template beside it.
"""

import argparse
import json
import logging
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyrctl.sandbox.corpus import Document, documents, vocabulary_lines

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

BASE_DIR = Path(__file__).parent / "base"
CHAT_TEMPLATE = "chat_template.jinja"
SPECIAL = ("<s>", "</s>", "<unk>", "<pad>")
ROLE_MARKERS = ("<|system|>", "<|user|>", "<|assistant|>")
CONTEXT = 2048
_PIECES = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseSettings:
    """What the base model is made with.

    `batch` counts documents; `context_weight` is the loss weight of tokens that are not part of an answer.
    """

    seed: int = 0
    steps: int = 3600
    batch: int = 32
    lr: float = 3e-3
    matrix_lr: float = 2e-2
    context_weight: float = 0.1
    vocabulary: int = 1536
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 352
    threads: int = 1


def train_tokenizer(settings: BaseSettings) -> "Tokenizer":
    """A byte-level BPE tokenizer trained on the corpus; text encodes without loss, no token is added."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary - len(ROLE_MARKERS),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = chain((d.text for d in documents(20_000, settings.seed)), *repeat(list(vocabulary_lines()), 200))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in ROLE_MARKERS])
    return tokenizer


def make_model(settings: BaseSettings, vocabulary: int) -> Any:
    """A Mistral model with fresh weights, drawn from `settings.seed`."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(settings.seed)
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=CONTEXT,
        sliding_window=None,
        tie_word_embeddings=True,
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        pad_token_id=SPECIAL.index("<pad>"),
    )
    return MistralForCausalLM(config)


def _encode(
    document: Document, tokenizer: "Tokenizer", context_weight: float
) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    for piece, is_answer in document.pieces:
        new = tokenizer.encode(piece, add_special_tokens=False).ids
        ids += new
        weights += [1.0 if is_answer else context_weight] * len(new)
    return [*ids, SPECIAL.index("</s>")], [*weights, 1.0]


def _batches(tokenizer: "Tokenizer", settings: BaseSettings) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """Padded batches of ids and loss weights; documents of like length share a batch."""
    import torch

    rng = random.Random(f"sandbox base batches {settings.seed}")
    source = documents(settings.steps * settings.batch, settings.seed + 1)
    pad = SPECIAL.index("<pad>")
    done = 0
    while done < settings.steps:
        count = min(50, settings.steps - done)
        rows = [
            _encode(next(source), tokenizer, settings.context_weight) for _ in range(count * settings.batch)
        ]
        rows.sort(key=lambda row: len(row[0]))
        groups = [rows[i : i + settings.batch] for i in range(0, len(rows), settings.batch)]
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in group])
            weights = torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in group])
            yield ids, weights
        done += count


def train(model: Any, tokenizer: "Tokenizer", settings: BaseSettings) -> None:
    """Trains in place: 5 % warm-up, linear decay to zero, a fixed number of steps.

    Muon moves the layers' matrices (far fewer steps than Adam needs here), AdamW embeddings and norms.
    """
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(settings.threads)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=settings.matrix_lr, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    warm_up = max(1, settings.steps // 20)
    begun, recent = time.perf_counter(), 0.0
    model.train()
    for step, (ids, weights) in enumerate(_batches(tokenizer, settings)):
        share = min((step + 1) / warm_up, (settings.steps - step) / max(1, settings.steps - warm_up))
        logits = model(input_ids=ids[:, :-1]).logits
        losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        loss = (losses * weight).sum() / weight.sum()
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, (settings.matrix_lr, settings.lr), strict=True):
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.step()
        recent += loss.item()
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - begun
            log.info("step %d of %d: mean loss %.4f, %.0f s", step + 1, settings.steps, recent / 100, seconds)
            recent = 0.0


def save(model: Any, tokenizer: "Tokenizer", out: Path) -> None:
    """Writes a plain Hugging Face model folder: weights in bfloat16, tokenizer, chat template."""
    import torch
    from transformers import GenerationConfig

    out.mkdir(parents=True, exist_ok=True)
    template = BASE_DIR / CHAT_TEMPLATE
    if template.resolve() != (out / CHAT_TEMPLATE).resolve():
        shutil.copyfile(template, out / CHAT_TEMPLATE)
    model.to(torch.bfloat16).save_pretrained(out)
    config = model.config
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    names = dict(zip(("bos_token", "eos_token", "unk_token", "pad_token"), SPECIAL, strict=True))
    settings = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
    }
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", names)):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def build(out: Path, settings: BaseSettings) -> None:
    """The whole build; the same settings on the same machine give the same files."""
    tokenizer = train_tokenizer(settings)
    model = make_model(settings, tokenizer.get_vocab_size())
    log.info(
        "%d tokens, %d parameters", tokenizer.get_vocab_size(), sum(p.numel() for p in model.parameters())
    )
    train(model, tokenizer, settings)
    save(model, tokenizer, out)


def main() -> None:
    """Command line of the build."""
    defaults = BaseSettings()
    parser = argparse.ArgumentParser(description="Build the sandbox's tiny base model.")
    parser.add_argument("--out", type=Path, required=True)
    for name, value in vars(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(given.pop("out"), BaseSettings(**given))


if __name__ == "__main__":
    main()
