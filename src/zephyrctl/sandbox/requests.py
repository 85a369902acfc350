"""What a request asks of the teacher, found by reading its text: quoted blocks and the reply that it wants."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from zephyrctl.quote import split_blocks

Kind = Literal["chat", "refine", "aspect", "overall", "single", "pairwise"]

_ASPECT = re.compile(r"^Aspect: *(?P<name>\w+)", re.MULTILINE)
_TEXT = re.compile(r"TEXT (?P<number>\d+)")
_REPAIR = "could not be read by a program"
_JSON = "one JSON object"
_TYPES = re.compile(r'^Types:|"types"', re.MULTILINE)


@dataclass(frozen=True)
class Request:
    """One request: its kind, the conversation's user turns, the answers in order shown, the aspect.

    For `refine`, `turns` is the instruction to refine and `answers` its response. `typed` = kinds are to be named by
    number; `structured` = the reply is to be JSON; `repair` = an earlier reply could not be read, and the ratings
    alone are wanted.
    """

    kind: Kind
    turns: tuple[str, ...]
    answers: tuple[str, ...] = ()
    aspect: str = ""
    typed: bool = False
    structured: bool = False
    repair: bool = False


def read_request(messages: Sequence[Mapping[str, str]]) -> Request:
    """The request that chat messages make. Whatever is not a known judge or refine prompt is plain chat."""
    turns = tuple(message.get("content", "") for message in messages if message.get("role") == "user")
    chat = Request("chat", turns)
    if not turns:
        return chat
    if is_repair(messages):
        return replace(_judged(turns[-2]) or chat, repair=True)
    return _judged(turns[-1]) or chat


def is_repair(messages: Sequence[Mapping[str, str]]) -> bool:
    """Whether the last message says that the reply before it, to a request of a judge, could not be read."""
    roles = [message.get("role") for message in messages]
    if roles[-3:] != ["user", "assistant", "user"]:
        return False
    return _REPAIR in messages[-1].get("content", "") and _judged(messages[-3].get("content", "")) is not None


def _judged(turn: str) -> Request | None:
    """The request in one message; None for plain chat."""
    blocks, frame = split_blocks(turn)
    conversation = tuple(text for name, text in blocks.items() if name.startswith("USER "))
    texts = tuple(text for name, text in blocks.items() if _TEXT.fullmatch(name))
    structured = _JSON in frame
    if "INSTRUCTION" in blocks and "RESPONSE" in blocks:
        return Request("refine", (blocks["INSTRUCTION"],), (blocks["RESPONSE"],))
    if texts:
        found = _ASPECT.search(frame)
        typed = _TYPES.search(frame) is not None
        return Request("aspect", conversation, texts, found["name"] if found else "", typed, structured)
    if "ANSWER A" in blocks and "ANSWER B" in blocks and "Verdict: [[" in frame:
        return Request("pairwise", conversation, (blocks["ANSWER A"], blocks["ANSWER B"]))
    if "ANSWER" in blocks and ("Overall score:" in frame or '"score"' in frame):
        return Request("overall", conversation, (blocks["ANSWER"],), structured=structured)
    if "ANSWER" in blocks and "Rating: [[" in frame:
        return Request("single", conversation, (blocks["ANSWER"],))
    return None
