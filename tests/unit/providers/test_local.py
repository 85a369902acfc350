"""The local provider: batches, greedy and drawn, that do not depend on who shares the batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from zephyrctl.artifacts.models import ModelSource
from zephyrctl.chat.render import render_prompt
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import EnvironmentFault
from zephyrctl.providers.base import Ask, BatchProvider, Retryable, Sampling
from zephyrctl.providers.local import LocalProvider
from zephyrctl.records import Message
from zephyrctl.testing.tiny import make_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("local") / "m", seed=3)


@pytest.fixture(scope="module")
def provider(folder: Path) -> LocalProvider:
    return LocalProvider(ModelSource(folder, "sha256:abc", "tiny@v1", "sandbox", None))


def ask(
    text: str, *, temperature: float = 0.0, draw: int = 0, max_tokens: int = 12, top_p: float = 1.0
) -> Ask:
    sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=5)
    return Ask((Message(role="user", content=text),), sampling, draw)


def answers(provider: LocalProvider, asks: Sequence[Ask]) -> list[str]:
    return [provider.read(raw).text for raw in provider.send_batch([provider.wire(a) for a in asks])]


PROMPTS = ["a", "a longer question than the others, by far", "in the", "q" * 40, "or or or"]


def test_it_is_a_batch_provider(provider: LocalProvider) -> None:
    assert isinstance(provider, BatchProvider)
    assert (provider.kind, provider.world, provider.label) == ("local", "sandbox", "tiny@v1")
    body = provider.wire(ask("x", draw=2))
    assert body["model"] == "sha256:abc"
    assert body["draw"] == 2
    assert json.loads(json.dumps(body)) == body


def test_greedy_answers_are_those_of_transformers(provider: LocalProvider, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer, model = (
        load_tokenizer(folder),
        AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32),
    )
    for text, got in zip(PROMPTS, answers(provider, [ask(p) for p in PROMPTS]), strict=True):
        prompt = torch.tensor([render_prompt(tokenizer, [Message(role="user", content=text)])])
        wanted = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, pad_token_id=3
        )[0, prompt.shape[1] :]
        assert got == tokenizer.decode(wanted, skip_special_tokens=True)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_answers_do_not_depend_on_the_batch(provider: LocalProvider, temperature: float) -> None:
    asks = [ask(p, temperature=temperature, draw=d) for p in PROMPTS for d in (0, 1)]
    together = answers(provider, asks)
    assert together == [answers(provider, [a])[0] for a in asks]
    assert together == answers(provider, asks[::-1])[::-1]
    if temperature:
        assert together[0::2] != together[1::2], "draws differ"
        assert len(set(together)) > 5


def test_a_nucleus_of_nothing_else_is_greedy(provider: LocalProvider) -> None:
    assert answers(provider, [ask("in", temperature=1.0, top_p=1e-6)]) == answers(provider, [ask("in")])


def test_draws_follow_the_models_probabilities(provider: LocalProvider) -> None:
    import torch

    from zephyrctl.providers.local import _choose, _Row

    logits = torch.log(torch.tensor([0.6, 0.3, 0.1, 1e-9]))
    rows = []
    for seed in range(3000):
        generator = torch.Generator()
        generator.manual_seed(seed)
        rows.append(_Row([], 1, 1.0, 1.0, generator, []))
    chosen = torch.tensor(_choose(logits.repeat(3000, 1), rows))
    shares = [(chosen == token).float().mean().item() for token in range(4)]
    assert shares == pytest.approx([0.6, 0.3, 0.1, 0.0], abs=0.04)


def test_limits_and_reasons(provider: LocalProvider) -> None:
    short = provider.read(provider.send_batch([provider.wire(ask("in the", max_tokens=3))])[0])
    assert (short.finish_reason, short.outcome) == ("length", "length")
    assert short.usage is not None
    assert short.usage.completion_tokens == 3
    full = provider.read(provider.send_batch([provider.wire(ask("z" * 2100))])[0])
    assert (full.text, full.finish_reason) == ("", "length")


def test_an_answer_ends_at_its_end_token(provider: LocalProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    from zephyrctl.providers import local

    tokens = iter([[40, 41], [1, 42], [43]])
    monkeypatch.setattr(local, "_choose", lambda logits, rows: next(tokens))
    replies = [
        provider.read(r) for r in provider.send_batch([provider.wire(ask(p, max_tokens=3)) for p in "ab"])
    ]
    assert [r.finish_reason for r in replies] == ["stop", "length"]
    assert [r.usage.completion_tokens for r in replies if r.usage] == [1, 3]
    assert replies[0].outcome == "text"


@pytest.mark.parametrize("raw", [b"", b"null", b"{}", b'{"text": "x"}', b"<html>"])
def test_what_is_no_reply_is_refused(provider: LocalProvider, raw: bytes) -> None:
    with pytest.raises(Retryable):
        provider.read(raw)


def test_close_frees_and_the_next_batch_loads_again(folder: Path) -> None:
    provider = LocalProvider(ModelSource(folder, "sha256:abc", "tiny@v1", "real", None), label="mine")
    first = answers(provider, [ask("a")])
    provider.close()
    assert provider._loaded is None
    assert answers(provider, [ask("a")]) == first
    assert provider.label == "mine"


def test_a_folder_without_a_model(tmp_path: Path, folder: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "m"))
    (copy / "model.safetensors").write_bytes(b"\x00" * 30)
    broken = LocalProvider(ModelSource(copy, "sha256:abc", "x", "real", None))
    with pytest.raises(EnvironmentFault, match="cannot be loaded"):
        broken.send_batch([broken.wire(ask("a"))])
