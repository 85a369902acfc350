"""What a request asks of the teacher, found by reading its text: quoted blocks and the reply line it wants."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from zephyrctl.quote import split_blocks

Kind = Literal["chat", "refine", "aspect", "overall", "single", "pairwise"]

_ASPECT = re.compile(r"^Aspect: *(?P<name>\w+)", re.MULTILINE)
_TEXT = re.compile(r"TEXT (?P<number>\d+)")


@dataclass(frozen=True)
class Request:
    """One request: its kind, the conversation's user turns, the answers in order shown, the aspect.

    For `refine`, `turns` is the instruction to refine and `answers` its response.
    """

    kind: Kind
    turns: tuple[str, ...]
    answers: tuple[str, ...] = ()
    aspect: str = ""


def read_request(messages: Sequence[Mapping[str, str]]) -> Request:
    """The request that chat messages make. Whatever is not a known judge or refine prompt is plain chat."""
    turns = tuple(message.get("content", "") for message in messages if message.get("role") == "user")
    blocks, frame = split_blocks(turns[-1]) if turns else ({}, "")
    conversation = tuple(text for name, text in blocks.items() if name.startswith("USER "))
    texts = tuple(text for name, text in blocks.items() if _TEXT.fullmatch(name))
    if "INSTRUCTION" in blocks and "RESPONSE" in blocks:
        return Request("refine", (blocks["INSTRUCTION"],), (blocks["RESPONSE"],))
    if texts:
        found = _ASPECT.search(frame)
        return Request("aspect", conversation, texts, found["name"] if found else "")
    if "ANSWER A" in blocks and "ANSWER B" in blocks and "Verdict: [[" in frame:
        return Request("pairwise", conversation, (blocks["ANSWER A"], blocks["ANSWER B"]))
    if "ANSWER" in blocks and "Overall score:" in frame:
        return Request("overall", conversation, (blocks["ANSWER"],))
    if "ANSWER" in blocks and "Rating: [[" in frame:
        return Request("single", conversation, (blocks["ANSWER"],))
    return Request("chat", turns)
