import pytest

from zephyrctl.errors import UsageError
from zephyrctl.modelspec import parse_model


@pytest.mark.parametrize(
    ("text", "where", "name"),
    [
        ("gpt-4", "openai", "gpt-4"),
        ("o3", "openai", "o3"),
        ("openai:my-finetune", "openai", "my-finetune"),
        ("claude-opus-4-1", "anthropic", "claude-opus-4-1"),
        ("ckpt/sft-e1", "folder", "ckpt/sft-e1"),
        ("./m", "folder", "./m"),
        ("/m", "folder", "/m"),
        ("demo/ckpt/sft-e1", "folder", "demo/ckpt/sft-e1"),
        ("local:some/dir", "folder", "some/dir"),
        ("sft-e1@v3", "artifact", "sft-e1@v3"),
        ("sft-e1@sha256:0123abcd", "artifact", "sft-e1@sha256:0123abcd"),
        ("mistralai/Mistral-7B-v0.1", "hub", "mistralai/Mistral-7B-v0.1"),
        ("hf:org/name", "hub", "org/name"),
        ("hf://org/name", "hub", "org/name"),
        ("sandbox", "sandbox", "teacher"),
        ("sandbox:pool-a", "sandbox", "pool-a"),
    ],
)
def test_readings(text: str, where: str, name: str) -> None:
    spec = parse_model(text)
    assert (spec.where, spec.name, spec.endpoint) == (where, name, None)


def test_endpoint() -> None:
    spec = parse_model("vllm:qwen3-8b")
    assert (spec.where, spec.endpoint, spec.name) == ("endpoint", "vllm", "qwen3-8b")
    assert spec.label == "vllm:qwen3-8b"


def test_parameters() -> None:
    spec = parse_model("gpt-4?temperature=1&top_p=0.9&max_tokens=64")
    assert spec.params == {"temperature": 1.0, "top_p": 0.9, "max_tokens": 64}
    assert spec.name == "gpt-4"
    assert parse_model("lab:org/qwen?effort=none").params == {"effort": "none"}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("mymodel", "./mymodel"),
        ("", "empty"),
        ("openai:", "no model"),
        ("gpt-4?heat=1", "heat"),
        ("gpt-4?top_p=x", "number"),
        ("gpt-4?effort=", "no value"),
        ("gpt-4?temperature=-1", "at least 0"),
        ("gpt-4?temperature=inf", "out of range"),
        ("gpt-4?temperature=nan", "out of range"),
        ("gpt-4?top_p=0", "above 0 and at most 1"),
        ("gpt-4?top_p=1.1", "at most 1"),
        ("gpt-4?max_tokens=0", "at least 1"),
    ],
)
def test_refusals(text: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_model(text)
    assert word in f"{caught.value.message} {caught.value.hint}"
