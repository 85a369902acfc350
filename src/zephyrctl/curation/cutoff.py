"""Answers that were cut off before their end."""

from __future__ import annotations

import re

from zephyrctl.curation.base import Dialogue, Dropped
from zephyrctl.records import Message

VERSION = 1
_DANGLING = (
    "a an the and or but nor so of to in on at by for from with into than that which who whose is are was were be has "
    "have had will would can could should may might must not this these those your my our their its as if when while "
    "because since such including like between"
)
_CLOSING = re.compile(r"[\"'”’)\]}*_`»>]+$")
_SENTENCES = re.compile(r"[.!?。！？…](?=\s|$)")
_LIST_LINE = re.compile(r"\s*(?:[-*•–+>|#]|\(?\w{1,3}[.)])\s?")
_ENOUGH = 3
"""Sentences with a full stop from which on an end without one is no matter of style."""
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
    if len(re.findall(r"^\s*```", text, re.MULTILINE)) % 2:
        return "ends inside a code fence"
    if text.endswith("```"):
        return ""
    bare = _CLOSING.sub("", text)
    if not bare:
        return ""
    if bare[-1] in ",;([{" or text[-1] in "([{":
        return f"ends after '{bare[-1] if bare[-1] in ',;([{' else text[-1]}'"
    last_line = bare.rsplit("\n", 1)[-1]
    words = re.findall(r"[^\W\d_]+", last_line)
    if (
        words
        and bare.endswith(words[-1])
        and words[-1].islower()
        and words[-1] in _DANGLING
        and len(words) > 3
    ):
        return f"ends with '{words[-1]}'"
    if not bare[-1].isalnum() or _LIST_LINE.match(last_line) or len(last_line) < _PROSE:
        return ""
    if len(_SENTENCES.findall(bare)) >= _ENOUGH and bare[-1].isalpha():
        return "ends in the middle of a sentence"
    return ""
