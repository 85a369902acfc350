"""The local provider: batches, greedy and drawn, that do not depend on who shares the batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from zephyrctl.artifacts.models import ModelSource
from zephyrctl.chat.render import render_prompt
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import EnvironmentFault, UsageError
from zephyrctl.money import FREE
from zephyrctl.providers.base import Ask, BatchProvider, Retryable, Sampling, Schema
from zephyrctl.providers.hosted.fitting import Fit
from zephyrctl.providers.local.provider import LocalProvider
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
    assert set(body) == {"model", "messages", "temperature", "top_p", "max_tokens", "seed", "draw"}, (
        "a new field in every request would ask for everything anew"
    )
    assert (provider.price, provider.dropped) == (FREE, ())
    prompt, answer = provider.bound(body)
    assert answer == 12
    assert prompt >= len(
        render_prompt(load_tokenizer(provider.model.path), [Message(role="user", content="x")])
    )


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
    assert answers(provider, [ask("in", temperature=1e-300)]) == answers(provider, [ask("in")])


def test_draws_follow_the_models_probabilities(provider: LocalProvider) -> None:
    import torch

    from zephyrctl.providers.local.decoding import _choose, _Row

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
    assert short.tokens is not None
    assert short.tokens.completion == 3
    full = provider.read(provider.send_batch([provider.wire(ask("z" * 2100))])[0])
    assert (full.text, full.finish_reason) == ("", "length")


def test_an_answer_ends_at_its_end_token(provider: LocalProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    from zephyrctl.providers.local import decoding

    tokens = iter([[40, 41], [1, 42], [43]])
    monkeypatch.setattr(decoding, "_choose", lambda logits, rows: next(tokens))
    replies = [
        provider.read(r) for r in provider.send_batch([provider.wire(ask(p, max_tokens=3)) for p in "ab"])
    ]
    assert [r.finish_reason for r in replies] == ["stop", "length"]
    assert [r.tokens.completion for r in replies if r.tokens] == [1, 3]
    assert replies[0].outcome == "text"


def test_an_answer_ends_before_a_stop_string(provider: LocalProvider) -> None:
    asked = ask("in the", max_tokens=40, temperature=1.0)
    free = answers(provider, [asked])[0]
    stop = free[6:9]
    assert len(stop) == 3
    assert free.index(stop) == 6
    stopped = replace(asked, sampling=replace(asked.sampling, stop=("never written", stop), logprobs=0))
    body = provider.wire(stopped)
    assert body["stop"] == ["never written", stop]
    (raw,) = provider.send_batch([body])
    reading = provider.read(raw)
    assert reading.text == free[: free.index(stop)]
    assert (reading.finish_reason, reading.outcome) == ("stop", "text")
    assert reading.logprobs is not None
    spelled = "".join(one.token for one in reading.logprobs)
    assert stop in spelled
    assert len(spelled) < len(free)


def test_log_probabilities_are_the_models_own(provider: LocalProvider, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    asked = ask("a question", max_tokens=5, temperature=1.3)
    plain = answers(provider, [asked])[0]
    asked = replace(asked, sampling=replace(asked.sampling, logprobs=2))
    beside = ask("another, without them")
    raw, other = provider.send_batch([provider.wire(asked), provider.wire(beside)])
    reading = provider.read(raw)
    assert provider.read(other).logprobs is None
    assert reading.text == plain, "noting them changes no answer"
    assert reading.logprobs is not None
    assert reading.tokens is not None
    assert len(reading.logprobs) == reading.tokens.completion
    tokenizer = load_tokenizer(folder)
    prompt = render_prompt(tokenizer, list(asked.messages))
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    with torch.inference_mode():
        line = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], dim=-1)
    first = reading.logprobs[0]
    best = line.topk(2)
    assert [value for _, value in first.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert [token for token, _ in first.top] == [tokenizer.decode([t]) for t in best.indices.tolist()]
    assert any(first.logprob == pytest.approx(float(value), abs=1e-4) for value in line)


def test_reasoning_is_kept_apart(provider: LocalProvider) -> None:
    def reply(text: str, finish: str) -> bytes:
        usage = {"prompt_tokens": 3, "completion_tokens": 4}
        return json.dumps({"text": text, "finish_reason": finish, "usage": usage, "model": "m"}).encode()

    whole = provider.read(reply("<think>hm</think> yes", "stop"))
    assert (whole.reasoning, whole.text, whole.outcome) == ("hm", "yes", "text")
    cut = provider.read(reply("<think>hm and", "length"))
    assert (cut.reasoning, cut.text, cut.outcome) == ("hm and", "", "reasoning_cut")


def test_what_only_servers_know_is_refused_or_dropped(folder: Path) -> None:
    source = ModelSource(folder, "sha256:abc", "tiny@v1", "sandbox", None)
    asked = replace(ask("x"), schema=Schema("answer", {"type": "object"}))
    with pytest.raises(UsageError, match="schema"):
        LocalProvider(source).wire(asked)
    lenient = LocalProvider(source, fit=Fit(may_drop=frozenset({"schema"})))
    assert lenient.wire(asked) == LocalProvider(source).wire(ask("x"))
    assert lenient.dropped == ("schema",)
    with pytest.raises(UsageError, match="effort"):
        LocalProvider(source).wire(
            replace(asked, schema=None, sampling=replace(asked.sampling, effort="high"))
        )
    assert LocalProvider(source, fit=Fit(effort="high")).wire(ask("x")), (
        "it is meant for models that have one"
    )


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
