"""What each edition makes of a row, to the token: `golden_tokens.json`, read by eye.

The tokenizer is made here and treats text as Mistral's does: `<unk>` 0, `<s>` 1, `</s>` 2, then a token for each
byte (the newline is 13), words with a leading `▁` for a space, and a `▁` in front of every piece of text, also behind
`</s>`. Tokens between [ and ] bear loss; `|` parts the prompt of a pair from its answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.cli.edition import token_decisions
from zephyrctl.editions.load import load
from zephyrctl.editions.samples import sample_dialogues, sample_pairs
from zephyrctl.training.divergence import Stream, pair_streams, sft_stream

GOLDEN = json.loads((Path(__file__).parent / "golden_tokens.json").read_text(encoding="utf-8"))
EDITIONS = ["zephyr-7b/paper", "zephyr-7b/handbook-0.2", "zephyr-7b/handbook-0.3", "one-gpu", "small"]
WORDS = (
    "▁ ▁<| <| |> system user assistant . ? An ▁An ▁apple Bread Name ▁a ▁fruit ▁colour Blue Add ▁2 ▁and ▁3 5 And ▁4 "
    "▁more 9 Answer ▁in ▁one ▁word Which ▁animal ▁barks Dogs one ▁two ▁three ▁four ▁five ▁six ▁seven ▁eight ▁nine ▁ten "
    "Count ▁as ▁far ▁you ▁can That ▁is ▁count I ▁do ▁not ▁know One , ▁so ▁on Another A ▁pear No"
)


@pytest.fixture(scope="module")
def mistral_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer alone."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    special = ["<unk>", "<s>", "</s>"]
    vocabulary = [(token, 0.0) for token in special] + [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    vocabulary += [(word, -1.0) for word in WORDS.split()]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special)
    folder = tmp_path_factory.mktemp("mistral-like")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def written(tokenizer: Any, stream: Stream, *, pair: bool) -> dict[str, str]:
    """A stream as in the golden file; of a long one the ends."""
    pieces, bearing = [], False
    for token in stream.tokens:
        if token.loss != bearing:
            pieces += (["|"] if pair and token.loss else []) + (["["] if token.loss else ["]"])
            bearing = token.loss
        pieces.append(tokenizer.convert_ids_to_tokens(token.id))
    pieces += ["]"] if bearing else []
    ids = [str(token.id) for token in stream.tokens]
    if len(ids) > 100:
        pieces, ids = ([*part[:12], "...", *part[-8:]] for part in (pieces, ids))
    return {
        "tokens": f"{len(stream.tokens)}, {stream.with_loss} with loss",
        "pieces": " ".join(pieces),
        "ids": " ".join(ids),
    }


def made(edition: str, folder: Path) -> dict[str, dict[str, str]]:
    """All sample rows as the edition's SFT and DPO get them."""
    found = {}
    decisions = token_decisions(load(edition), "sft")
    tokenizer = decisions.tokenizer(folder)
    for name, dialogue in sample_dialogues():
        found[f"sft, {name}"] = written(tokenizer, sft_stream(dialogue, tokenizer, decisions), pair=False)
    decisions = token_decisions(load(edition), "dpo")
    tokenizer = decisions.tokenizer(folder)
    for name, row in sample_pairs():
        for side, stream in pair_streams(row, tokenizer, decisions).items():
            found[f"dpo, {name}, {side}"] = written(tokenizer, stream, pair=True)
    return found


@pytest.mark.parametrize("edition", EDITIONS)
def test_golden(edition: str, mistral_like: Path) -> None:
    found = made(edition, mistral_like)
    assert {name: found[name] for name in GOLDEN[edition]} == GOLDEN[edition]
    assert {name for name in found if "rejected" not in name} <= set(GOLDEN[edition])


def test_the_vocabulary_is_mistrals_where_it_matters(mistral_like: Path) -> None:
    tokenizer = token_decisions(load("small"), "sft").tokenizer(mistral_like)
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<0x0A>"]) == [0, 1, 2, 13]
    ids = tokenizer.encode("<s>Blue</s>\n", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁", "Blue", "</s>", "▁", "<0x0A>"]


@pytest.mark.parametrize("edition", EDITIONS)
def test_specials_come_as_often_as_the_edition_decides(edition: str, mistral_like: Path) -> None:
    found = made(edition, mistral_like)
    sections = load(edition).sections
    for name, row in found.items():
        stage, ids = name[:3], row["ids"].split()
        bos = (
            1 if sections[stage]["bos"] and "prompt" not in name else 0
        )  # a prompt that is cut loses its start
        assert ids.count("1") == bos, name
        assert ids.index("1") == 0 if bos else True
    for name in ("dpo, one turn, chosen", "dpo, several turns, rejected"):
        ends = found[name]["pieces"].removesuffix(" ]").split()[-4:]
        doubled = sections["dpo"]["close"] == "template+eos"
        assert (ends[-3:] == ["▁", "<0x0A>", "</s>"] and ends[0] == "</s>") == doubled
        assert ends[-1] == "</s>"
