"""The parts that rows are made of: message lists, texts, numbers, and who said what (pure).

Everything here raises ValueError saying what is wrong with a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from zephyrctl.records import Message

Row = Mapping[str, Any]

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TYPES = {
    type(None): "missing",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    dict: "an object",
    list: "a list",
    str: "text",
}
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_SYSTEM = ("system", "system_prompt")


class SaysNothing(ValueError):
    """A row in good order that nothing can be learned from: left out and counted under `reason`, never a bad row."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


def dialogue_id(messages: list[Message], parent: str | None = None) -> str:
    """The row_id of a dialogue: sha256 of its parent's row_id and its messages."""
    body = [parent, [[m.role, m.content] for m in messages]]
    return hashlib.sha256(_JSON.encode(body).encode()).hexdigest()


def messages_in(value: Any, column: str, role: str) -> list[Message]:
    """A message list; plain text is one message of `role`."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"`{column}` is empty")
        return [Message.model_validate({"role": role, "content": value})]
    if not isinstance(value, list):
        raise ValueError(f"`{column}` is {type_of(value)}; expected text or a list of messages")
    if not value:
        raise ValueError(f"`{column}` is an empty list")
    return [_message(item, f"{column}.{n}") for n, item in enumerate(value)]


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, Mapping):
        raise ValueError(f"`{place}` is {type_of(item)}; expected an object with role and content")
    said = item.get("role", item.get("from"))
    text = item.get("content", item.get("value"))
    role = _ROLES.get(str(said).lower()) if said is not None else None
    if role is None:
        raise ValueError(f"`{place}`: the role {said!r:.40} is none of system, user, assistant")
    if not isinstance(text, str):
        raise ValueError(f"`{place}`: the content is {type_of(text)}; expected text")
    return Message.model_validate({"role": role, "content": text})


def with_system(messages: list[Message], row: Row) -> list[Message]:
    """The messages after the text of a column `system` or `system_prompt`, where there is one and they do not begin
    with a system message themselves."""
    text = next((row[c] for c in _SYSTEM if isinstance(row.get(c), str) and row[c].strip()), None)
    if text is None or messages[0].role == "system":
        return messages
    return [Message(role="system", content=text), *messages]


def text_in(row: Row, column: str) -> str:
    """The text in a column."""
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"`{column}` is {type_of(value)}; expected text")
    return value


def instruction_in(row: Row) -> str:
    """`instruction` and, below it, `input` (or Dolly's `context`), where there is one."""
    text = text_in(row, "instruction")
    for column in ("input", "context"):
        extra = row.get(column)
        if extra is not None and not isinstance(extra, str):
            raise ValueError(f"`{column}` is {type_of(extra)}; expected text")
        if extra and extra.strip():
            return f"{text}\n\n{extra}"
    return text


def before_last_answer(messages: list[Message]) -> list[Message]:
    """The messages up to the last user turn that an answer follows, or that ends the list."""
    end = len(messages)
    while end and messages[end - 1].role != "user":
        end -= 1
    if not end:
        raise ValueError("there is no user message")
    return messages[:end]


def opening_of(messages: list[Message]) -> list[Message]:
    """The messages before the first answer: what the `prompt_id` of a dialogue stands for."""
    return messages[: next((n for n, m in enumerate(messages) if m.role == "assistant"), len(messages))]


def number_in(value: Any) -> float | None:
    """A number as it is; None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def label_in(value: Any) -> str | None:
    """Text as it is; None for anything else."""
    return value if isinstance(value, str) else None


def type_of(value: Any) -> str:
    """What a JSON value is, in words."""
    return _TYPES.get(type(value), "odd")
