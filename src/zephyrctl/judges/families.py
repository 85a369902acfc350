"""Which house a model comes from, read off its name: for the question whether a judge favours its own."""

from __future__ import annotations

import re
from functools import lru_cache

FAMILIES: dict[str, tuple[str, ...]] = {
    "openai": ("gpt", "chatgpt", "o1", "o3", "o4", "davinci", "text-davinci", "openai"),
    "anthropic": ("claude", "anthropic"),
    "google": ("gemini", "gemma", "palm", "bard", "google"),
    "meta": ("llama", "codellama", "meta-llama", "meta"),
    "mistral": ("mistral", "mixtral", "ministral", "magistral", "codestral", "zephyr", "mistralai"),
    "qwen": ("qwen", "qwq"),
    "deepseek": ("deepseek",),
    "microsoft": ("phi", "wizardlm", "microsoft"),
    "cohere": ("command", "aya", "cohere"),
    "01-ai": ("yi",),
    "tii": ("falcon", "tiiuae"),
    "nvidia": ("nemotron", "nvidia"),
    "allenai": ("olmo", "tulu", "allenai"),
    "zhipu": ("glm", "chatglm"),
    "moonshot": ("kimi", "moonshotai"),
    "xai": ("grok", "xai"),
    "lmsys": ("vicuna", "lmsys"),
    "mosaicml": ("mpt", "mosaicml"),
    "eleutherai": ("pythia", "gpt-neox", "gpt-j", "gpt-neo", "eleutherai"),
    "sandbox": ("sandbox",),
}
"""Words at the start of a part of a model's name. The longest that fits decides (`gpt-neox` is none of OpenAI's).
A model fine-tuned under a name of its own (`vicuna`, `zephyr`) belongs to whoever the table says: judges know style,
not weights."""


@lru_cache(maxsize=4096)
def family_of(model: str) -> str | None:
    """The family of a model's label (`openai:gpt-4`, `meta-llama/Llama-3-8B`, `ckpt/sft-e1`); None = not known."""
    name = model.casefold().split("?")[0]
    best: tuple[int, str] | None = None
    for part in re.split(r"[:/@]", name):
        for family, openings in FAMILIES.items():
            for opening in openings:
                if re.match(rf"{re.escape(opening)}(?![a-z])", part) and (
                    best is None or len(opening) > best[0]
                ):
                    best = (len(opening), family)
        if best is not None:
            return best[1]
    return None
