"""System messages that ask for a certain virtue, drawn for each completion by stated weights, as in UltraFeedback.

They are seen by the model that answers, and by nobody who rates.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.config import digest_of
from zephyrctl.records import Message, PromptRow, row_seed


@dataclass(frozen=True)
class Principles:
    """The table: texts by principle, weights by mix, the mix of each source, and that of all other prompts."""

    texts: Mapping[str, Sequence[str]]
    mixes: Mapping[str, Mapping[str, int]]
    sources: Mapping[str, str]
    otherwise: str

    def mix_of(self, source: str) -> str:
        """The mix for a row's `source`: that of the longest known name that stands by itself in it."""
        said = source.lower()
        for name in sorted(self.sources, key=lambda name: (-len(name), name)):
            if re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", said):
                return self.sources[name]
        return self.otherwise

    def drawn(self, row: PromptRow, seed: int, member: str, draw: int) -> tuple[str, str] | None:
        """The principle of one completion and its wording; None for a prompt with a system message of its own.

        Such a prompt keeps that message, alone: a second instruction would make it another prompt.
        """
        if has_system(row):
            return None
        mix = self.mixes[self.mix_of(row.source)]
        tickets = [name for name, weight in mix.items() for _ in range(weight)]
        name = tickets[row_seed(seed, row.prompt_id, "principle", member, draw) % len(tickets)]
        wording = row_seed(seed, row.prompt_id, "wording", member, draw) % len(self.texts[name])
        return name, self.texts[name][wording]

    def lengths(self) -> tuple[float, int]:
        """Bytes of a system message: the mean, and the longest."""
        sizes = [len(text.encode()) for texts in self.texts.values() for text in texts]
        return sum(sizes) / len(sizes), max(sizes)

    def inputs(self) -> list[InputRef]:
        """The table as an input of the step: another wording or weight is other work."""
        body = {
            "texts": self.texts,
            "mixes": self.mixes,
            "sources": self.sources,
            "otherwise": self.otherwise,
        }
        return [InputRef(role="principles", ref="zephyrctl", digest=digest_of(body), kind="principles")]


def has_system(row: PromptRow) -> bool:
    """Whether the prompt brings a system message."""
    return any(message.role == "system" for message in row.prompt)


def with_principle(prompt: Iterable[Message], text: str | None) -> tuple[Message, ...]:
    """The messages that the model is sent."""
    return (*([] if text is None else [Message(role="system", content=text)]), *prompt)


@functools.cache
def ultrafeedback() -> Principles:
    """The table that comes with the package."""
    import yaml

    text = resources.files("zephyrctl.stages.gen_prefs").joinpath("principles.yaml").read_text("utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    return Principles(table["principles"], table["mixes"], table["sources"], table["otherwise"])
