"""The language of a dialogue, as py3langid tells it (a model of 97 languages that lies in the package)."""

from __future__ import annotations

from typing import Any

from zephyrctl.curation.base import Dialogue, Dropped
from zephyrctl.curation.prose import prose_words
from zephyrctl.errors import MissingExtra, UsageError
from zephyrctl.records import Message

VERSION = 1
_LETTERS = 20
"""Letters of prose below which no language can be told; such dialogues pass."""
_TIMES = 10
"""A dialogue is dropped where another language is more than so many times as likely as all wanted ones together: names
and short texts are often near the border between related languages."""


class Language:
    """The filter `language=en` (or `language=en,de`): what the dialogue says, code left out, is in one of these
    languages. What is too short to tell passes. Needs the extra `language`."""

    learns = False

    def __init__(self, wanted: str) -> None:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError as error:
            raise MissingExtra("py3langid", "language") from error
        self._tell: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self._wanted = tuple(
            dict.fromkeys(code.strip().lower() for code in wanted.split(",") if code.strip())
        )
        self.name = "language=" + ",".join(self._wanted)
        known = {str(code) for code in self._tell.labels}
        unknown = [code for code in self._wanted if code not in known]
        if unknown or not self._wanted:
            raise UsageError(
                f"filter language={wanted}: {', '.join(unknown) or 'nothing'} is no language code",
                hint="ISO 639-1 codes, such as language=en or language=en,de",
            )

    def learn(self, dialogue: Dialogue) -> None:
        """Nothing is learned."""

    def apply(self, dialogue: Dialogue) -> list[list[Message]] | Dropped:
        """The dialogue, or Dropped with the language that was recognised."""
        text = " ".join(_prose(m.content) for m in dialogue if m.role != "system")
        if sum(c.isalpha() for c in text) < _LETTERS:
            return [list(dialogue)]
        ranked = [(str(code), float(share)) for code, share in self._tell.rank(text)]
        (code, likeliest), *_ = ranked
        wanted = sum(share for known, share in ranked if known in self._wanted)
        if likeliest <= _TIMES * wanted:
            return [list(dialogue)]
        return Dropped("language", f"{code} (probability {likeliest:.2f})")


def _prose(text: str) -> str:
    """The words of prose: a text that is nothing but code has none."""
    return " ".join(text[start:end] for line in prose_words(text) for start, end in line)
