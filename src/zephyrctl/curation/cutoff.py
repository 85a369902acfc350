"""Answers that were cut off before their end."""

from __future__ import annotations

import re

from zephyrctl.curation.base import Dialogue, Dropped
from zephyrctl.records import Message

VERSION = 1
_DANGLING = {
    "a", "an", "the", "and", "or", "but", "nor", "of", "into", "than", "whose", "my", "your", "our", "their", "its",
    "if", "because", "including", "between",
}  # fmt: skip
"""Words that no sentence ends with. Others that seldom do (`to`, `is`, `that`) are not worth a good answer."""
_CLOSING = "\"'”’)]}*_`»>"
_SENTENCES = re.compile(r"[.!?。！？…](?=\s|$)")
_LIST_LINE = re.compile(r"\s*(?:[-*•–+>|#]|\(?\w{1,3}[.)])\s?")
_ENOUGH = 3
"""Sentences with a full stop from which on an end without one is no matter of style."""
_GREETING = re.compile(r"[^\W\d_]+(?: [^\W\d_]+){0,2},")
"""The end of a letter without a name below it: `Best regards,`."""
_ADDRESS = re.compile(r"[/@#]|\w\.\w")
"""A link, a name of a file, a hashtag."""
_PROSE = 40
"""Characters of a last line below which it may be a heading, a name or a signature."""


class CutOff:
    """The filter `cut-off`: an answer of the assistant ends in an open code fence, after a comma or an opening bracket,
    with a word that must go on (`the`, `and`), or, in a text of full sentences, without an end to its last one."""

    name = "cut-off"
    learns = False

    def learn(self, dialogue: Dialogue) -> None:
        """Nothing is learned."""

    def apply(self, dialogue: Dialogue) -> list[list[Message]] | Dropped:
        """The dialogue, or Dropped with what shows that an answer is cut."""
        for number, message in enumerate(dialogue, start=1):
            if message.role == "assistant" and (sign := sign_of_cut(message.content)):
                return Dropped("cut_off", f"message {number} {sign}")
        return [list(dialogue)]


def sign_of_cut(answer: str) -> str:
    """What shows that an answer is cut off, in words; empty where nothing does."""
    text = answer.rstrip()
    if not text:
        return ""
    if len(re.findall(r"^[ \t]*```", text, re.MULTILINE)) % 2:
        return "ends inside a code fence"
    if text.endswith("```"):
        return ""
    bare = text.rstrip(_CLOSING).rstrip()
    if not bare:
        return ""
    last_line = bare.rsplit("\n", 1)[-1]
    if text[-1] in "([{":
        return f"ends after '{text[-1]}'"
    if bare[-1] == ",":
        return "" if "\n" in bare and _GREETING.fullmatch(last_line.strip()) else "ends after ','"
    if _ADDRESS.search(last_line.rsplit(maxsplit=1)[-1]):
        return ""
    words = re.findall(r"[^\W\d_]+", last_line)
    if not words or not bare.endswith(words[-1]):
        return ""
    if len(words) > 3 and words[-1] in _DANGLING:
        return f"ends with '{words[-1]}'"
    in_prose = len(last_line) >= _PROSE and not _LIST_LINE.match(last_line)
    # a name or a title that stands below a text begins its last word with a capital
    if in_prose and not words[-1][0].isupper() and len(_SENTENCES.findall(bare)) >= _ENOUGH:
        return "ends in the middle of a sentence"
    return ""
