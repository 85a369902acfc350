"""What the teacher is asked as planner and as user, and how its part as user is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from zephyrctl.judges.templates import digest, render
from zephyrctl.quote import quote_blocks
from zephyrctl.records import Message
from zephyrctl.stages.gen_sft.ultrachat.plan import QUESTIONS, SUBTOPICS

SUBTOPIC_LIST, QUESTION_LIST, USER_TURN, ANSWER = "subtopics", "questions", "user turn", "answer"
"""The purposes of the requests."""
END = "[[END]]"
"""What the user says who has nothing more to ask."""

_PACKAGE = "zephyrctl.stages.gen_sft.ultrachat"
_FILES = ("subtopics", "questions", "user", "ending")
_LABEL = re.compile(r"\s*(?:\*\*)?user(?: \d+)?(?:\*\*)?\s*:\s*(?:\*\*)?", re.IGNORECASE)
_COURTESIES = (
    "ok(?:ay)?|great|perfect|awesome|cool|wonderful|excellent|amazing|brilliant|alright|cheers|(?:good)?bye",
    "(?:many )?thanks(?: (?:again|a lot|a bunch|so much|very much))?|thank you(?: (?:again|so much|very much))*",
    r"for (?:explaining|clarifying|helping|answering|sharing)(?: (?:it|that|this|me|everything))?",
    r"that makes (?:\w+ )?sense|(?:i have )?no (?:more|further|other) questions",
    r"(?:for|with) (?:all )?(?:the|your|this|that) (?:\w+ )?"
    "(?:help|answers?|advice|tips|time|explanations?|information)",
    r"that(?:'s| is| was) (?:\w+ )?(?:helpful|useful|clear|great|perfect|all|everything)(?: i need(?:ed)?)?",
    r"have a (?:\w+ )?(?:day|evening|weekend|one)|take care|see you(?: \w+)?|i appreciate (?:it|that|your \w+)",
)
_FAREWELL = re.compile(rf"(?:(?:{'|'.join(_COURTESIES)})(?: |$))+")
"""Courtesies, one after the other, in lower case and without marks between them."""


@dataclass(frozen=True)
class Turn:
    """The user's next message; `text` None where the user ended the conversation, by `mark` or `farewell`."""

    text: str | None
    how: str = ""


def subtopics_request(topic: str) -> Message:
    """The request for a list of subtopics."""
    return _user("subtopics", blocks=quote_blocks({"TOPIC": topic}), count=str(SUBTOPICS))


def questions_request(topic: str, subtopic: str) -> Message:
    """The request for a list of opening messages."""
    blocks = quote_blocks({"TOPIC": topic, "SUBTOPIC": subtopic})
    return _user("questions", blocks=blocks, count=str(QUESTIONS))


def user_request(topic: str, subtopic: str, said: Sequence[Message], *, may_end: bool) -> Message:
    """The request for the user's next message after `said`, rounds of user and assistant."""
    blocks = {"TOPIC": topic, "SUBTOPIC": subtopic}
    for number, message in enumerate(said):
        blocks[f"{message.role.upper()} {number // 2 + 1}"] = message.content
    ending = render(_PACKAGE, "prompts/ending.md", mark=END) if may_end else ""
    return _user("user", blocks=quote_blocks(blocks), ending=ending)


def read_turn(reply: str) -> Turn:
    """The user's message in a reply, without a role's name in front of it; no message where the reply holds the mark
    of the end, or is nothing but thanks and a farewell, or nothing at all."""
    text = _LABEL.sub("", reply, count=1) if _LABEL.match(reply) else reply
    text = text.strip()
    if not text or END in text:
        return Turn(None, "mark")
    if _FAREWELL.fullmatch(" ".join(re.findall(r"[\w']+", text.casefold()))):
        return Turn(None, "farewell")
    return Turn(text)


def template_digests() -> dict[str, str]:
    """The hashes of the prompt files, for manifest and step key."""
    return {f"gen-sft/ultrachat/{name}.md": digest(_PACKAGE, f"prompts/{name}.md") for name in _FILES}


def _user(name: str, **values: str) -> Message:
    return Message(role="user", content=render(_PACKAGE, f"prompts/{name}.md", **values))
