"""Replies about the assistant's own person, and refusals, found by documented lists of phrases.

The published ultrachat_200k dropped dialogues whose assistant says things like "I do not have emotions" or "I don't
have opinions" (its dataset card); its list was never released. Ours is `phrases.yaml`, and can be added to.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from zephyrctl.config import digest_of
from zephyrctl.curation.base import Dialogue, Dropped
from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.records import Message

VERSION = 1
_OPENING = 200
"""Characters of a reply in which a refusal is looked for."""
_SPELLED_OUT = (
    (re.compile(r"\bcan't\b|\bcannot\b|\bcan not\b"), "cannot"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"\bshan't\b"), "shall not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"'m\b"), " am"),
    (re.compile(r"'re\b"), " are"),
    (re.compile(r"'ve\b"), " have"),
    (re.compile(r"'ll\b"), " will"),
)
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})
_BLANKS = re.compile(r"\s+")


def plain(text: str) -> str:
    """A text as phrases are compared with it: no case, contractions written out, single blanks."""
    text = _BLANKS.sub(" ", text.casefold().translate(_APOSTROPHES))
    for pattern, long in _SPELLED_OUT:
        text = pattern.sub(long, text)
    return text


class Phrases:
    """A filter that drops dialogues in which a reply of the assistant holds a phrase of a list."""

    learns = False

    def __init__(self, kind: str, more: str | None = None) -> None:
        self.kind = kind
        self.name = kind if more is None else f"{kind}={more}"
        listed = [*_shipped()[kind], *(_own(more) if more is not None else [])]
        self._pattern = re.compile(r"\b(?:" + "|".join(f"(?:{phrase})" for phrase in listed) + r")\b")
        self._reach = _OPENING if kind == "refusals" else None
        self.digest = digest_of([VERSION, kind, listed])

    def learn(self, dialogue: Dialogue) -> None:
        """Nothing is learned."""

    def apply(self, dialogue: Dialogue) -> list[list[Message]] | Dropped:
        """The dialogue as it is, or Dropped with the phrase that was found."""
        for number, message in enumerate(dialogue, start=1):
            if message.role != "assistant":
                continue
            hit = self._pattern.search(plain(message.content[: self._reach]))
            if hit:
                return Dropped(self.kind, f"message {number}: '{hit[0][:80]}'")
        return [list(dialogue)]


@cache
def _shipped() -> dict[str, list[str]]:
    import yaml

    text = files("zephyrctl.curation").joinpath("phrases.yaml").read_text(encoding="utf-8")
    return {str(kind): [str(phrase) for phrase in phrases] for kind, phrases in yaml.safe_load(text).items()}


def _own(place: str) -> list[str]:
    """The phrases of the user's file, taken literally."""
    path = Path(place).expanduser()
    if not path.is_file():
        raise RefNotFound(f"no such list of phrases: {place}", hint="a text file with one phrase a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{place}: not UTF-8 at byte {error.start + 1}", hint="save it as UTF-8") from None
    phrases = [plain(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not phrases:
        raise UsageError(f"{place}: there is no phrase in it", hint="one phrase a line; # begins a comment")
    return [re.escape(phrase) for phrase in phrases]
