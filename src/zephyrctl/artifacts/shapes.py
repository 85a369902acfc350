"""From the row shapes people have to the row types of zephyrctl (pure).

The shape of a file is that of its first row. Every converter takes one JSON object and gives a record; it
raises ValueError saying what is wrong with the row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from zephyrctl.records import (
    ROW_TYPES,
    FeedbackRow,
    Message,
    PreferenceRow,
    PromptRow,
    Record,
    SftRow,
    explain,
    prompt_id,
)

Row = Mapping[str, Any]
Converter = Callable[[Row], Record]

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
_FORBIDDEN = {"\0": "a NUL character"}


def detect(kind: str, row: Row) -> str:
    """The shape of a row, as it will be stated. Raises ValueError naming the shapes that `kind` accepts."""
    for shape, keys, _ in _SHAPES[kind]:
        if all(any(k in row for k in key.split("|")) for key in keys):
            return shape
    accepted = "; ".join(shape for shape, _, _ in _SHAPES[kind])
    found = ", ".join(sorted(map(str, row))[:12]) or "no columns at all"
    raise ValueError(f"the columns ({found}) are no {kind} rows; accepted: {accepted}")


def convert(kind: str, shape: str, row: Row) -> Record:
    """The record that `row`, of that shape, stands for. Raises ValueError."""
    for name, keys, converter in _SHAPES[kind]:
        if name == shape:
            missing = [key for key in keys if not any(k in row for k in key.split("|"))]
            if missing:
                raise ValueError(
                    f"no column {missing[0].replace('|', ' or ')}; the first row has the shape {shape}"
                )
            try:
                record = converter(row)
            except ValidationError as error:
                raise ValueError(explain(error)) from None
            return record
    raise ValueError(f"unknown shape {shape}")


def as_prompt(row: Record) -> PromptRow:
    """What a stored row of kind prompts, sft, feedback or prefs asks: for a dialogue, all before its last
    answer.
    """
    if isinstance(row, PromptRow):
        return row
    if isinstance(row, SftRow):
        messages = _before_last_answer(row.messages)
    elif isinstance(row, FeedbackRow | PreferenceRow):
        messages = row.prompt
    else:
        raise ValueError(f"a {type(row).__name__} asks nothing")
    return PromptRow(prompt_id=prompt_id(messages), prompt=messages, source=row.source)


def unstorable(value: Any) -> str | None:
    """What in a JSON value can be stored in no table: a NUL character or a lone surrogate.

    None where all is well.
    """
    if isinstance(value, str):
        if "\0" in value:
            return "text holds a NUL character"
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"text holds a lone surrogate at character {error.start}"
    if isinstance(value, Mapping):
        return next((why for pair in value.items() for v in pair if (why := unstorable(v))), None)
    if isinstance(value, list):
        return next((why for v in value if (why := unstorable(v))), None)
    return None


def dialogue_id(messages: list[Message], parent: str | None = None) -> str:
    """The row_id of a dialogue: sha256 of its parent's row_id and its messages."""
    body = [parent, [[m.role, m.content] for m in messages]]
    return hashlib.sha256(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def _messages(value: Any, column: str, role: str) -> list[Message]:
    """A message list; plain text is one message of `role`."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"`{column}` is empty")
        return [Message.model_validate({"role": role, "content": value})]
    if not isinstance(value, list):
        raise ValueError(f"`{column}` is {_type(value)}; expected text or a list of messages")
    if not value:
        raise ValueError(f"`{column}` is an empty list")
    return [_message(item, f"{column}.{n}") for n, item in enumerate(value)]


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, Mapping):
        raise ValueError(f"`{place}` is {_type(item)}; expected an object with role and content")
    said = item.get("role", item.get("from"))
    text = item.get("content", item.get("value"))
    role = _ROLES.get(str(said).lower()) if said is not None else None
    if role is None:
        raise ValueError(f"`{place}`: the role {said!r:.40} is none of system, user, assistant")
    if not isinstance(text, str):
        raise ValueError(f"`{place}`: the content is {_type(text)}; expected text")
    return Message.model_validate({"role": role, "content": text})


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"`{column}` is {_type(value)}; expected text")
    return value


def _type(value: Any) -> str:
    names = {
        type(None): "missing",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        dict: "an object",
    }
    return names.get(
        type(value), "a list" if isinstance(value, list) else "text" if isinstance(value, str) else "odd"
    )


def _before_last_answer(messages: list[Message]) -> list[Message]:
    """The messages up to the last user turn that an answer follows, or that ends the list."""
    end = len(messages)
    while end and messages[end - 1].role != "user":
        end -= 1
    if not end:
        raise ValueError("there is no user message")
    return messages[:end]


def _prompt_row(messages: list[Message], row: Row, follow_ups: list[str] | None = None) -> PromptRow:
    if not messages[-1].content.strip():
        raise ValueError("the prompt is empty")
    source = row.get("source")
    return PromptRow(
        prompt_id=prompt_id(messages),
        prompt=messages,
        follow_ups=follow_ups or [],
        source=source if isinstance(source, str) else "",
    )


def _prompt_from_prompt(row: Row) -> Record:
    return _prompt_row(_messages(row["prompt"], "prompt", "user"), row)


def _prompt_from_messages(row: Row) -> Record:
    return _prompt_row(_before_last_answer(_messages(row["messages"], "messages", "user")), row)


def _prompt_from_conversations(row: Row) -> Record:
    return _prompt_row(_before_last_answer(_messages(row["conversations"], "conversations", "user")), row)


def _prompt_from_instruction(row: Row) -> Record:
    return _prompt_row(_messages(_instruction(row), "instruction", "user"), row)


def _prompt_from_turns(row: Row) -> Record:
    turns = row["turns"]
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise ValueError("`turns` must be a list of texts, none of them empty")
    return _prompt_row(_messages(turns[0], "turns", "user"), row, turns[1:])


def _prompt_from_text(row: Row) -> Record:
    return _prompt_row(_messages(_text(row, "text"), "text", "user"), row)


def _instruction(row: Row) -> str:
    extra = row.get("input")
    if extra is not None and not isinstance(extra, str):
        raise ValueError(f"`input` is {_type(extra)}; expected text")
    text = _text(row, "instruction")
    return f"{text}\n\n{extra}" if extra and extra.strip() else text


def _sft_row(messages: list[Message], row: Row) -> SftRow:
    if not any(m.role == "assistant" and m.content.strip() for m in messages):
        raise ValueError("there is no answer to learn from")
    first = next((n for n, m in enumerate(messages) if m.role == "assistant"), len(messages))
    opening = messages[:first]
    identity = prompt_id(opening)
    model, source = row.get("model"), row.get("source")
    return SftRow(
        row_id=dialogue_id(messages),
        prompt_id=identity,
        messages=messages,
        seed_id=identity,
        model=model if isinstance(model, str) else None,
        source=source if isinstance(source, str) else "",
    )


def _sft_from_messages(row: Row) -> Record:
    return _sft_row(_messages(row["messages"], "messages", "user"), row)


def _sft_from_conversations(row: Row) -> Record:
    return _sft_row(_messages(row["conversations"], "conversations", "user"), row)


def _sft_from_alpaca(row: Row) -> Record:
    asked = _messages(_instruction(row), "instruction", "user")
    return _sft_row(asked + _messages(_text(row, "output"), "output", "assistant"), row)


def _sft_from_completion(row: Row) -> Record:
    column = "completion" if "completion" in row else "response"
    asked = _messages(row["prompt"], "prompt", "user")
    return _sft_row(asked + _messages(row[column], column, "assistant"), row)


def _sft_from_pair(row: Row) -> Record:
    asked, answer = _split_off(row.get("prompt"), _messages(row["chosen"], "chosen", "assistant"), "chosen")
    return _sft_row(asked + answer, row)


def _pair(row: Row) -> Record:
    chosen = _messages(row["chosen"], "chosen", "assistant")
    rejected = _messages(row["rejected"], "rejected", "assistant")
    if row.get("prompt") is not None:
        asked, chosen = _split_off(row["prompt"], chosen, "chosen")
        other, rejected = _split_off(row["prompt"], rejected, "rejected")
        if asked != other:
            raise ValueError("`chosen` and `rejected` begin with different prompts")
    else:
        asked, chosen, rejected = _shared(chosen, rejected)
    meta = row.get("metadata")
    known = {**(meta if isinstance(meta, Mapping) else {}), **row}
    return PreferenceRow(
        prompt_id=prompt_id(asked),
        prompt=asked,
        chosen=chosen,
        rejected=rejected,
        score_chosen=_number(known.get("score_chosen")),
        score_rejected=_number(known.get("score_rejected")),
        chosen_model=_label(known.get("chosen_model")),
        rejected_model=_label(known.get("rejected_model")),
        judge=_label(known.get("judge")),
        source=_label(row.get("source")) or "",
    )


def _split_off(prompt: Any, answer: list[Message], column: str) -> tuple[list[Message], list[Message]]:
    """The prompt's messages and those of the answer alone, where the answer may be a whole conversation."""
    if answer[0].role == "assistant":
        return _messages(prompt, "prompt", "user"), answer
    if isinstance(prompt, list):
        asked = _messages(prompt, "prompt", "user")
        if answer[: len(asked)] != asked:
            raise ValueError(f"`{column}` does not begin with the prompt")
        return asked, answer[len(asked) :]
    text = _text({"prompt": prompt}, "prompt").strip()
    cut = len(_before_last_answer(answer[:-1] or answer))
    asked, rest = answer[:cut], answer[cut:]
    if all(m.content.strip() != text for m in asked if m.role == "user"):
        raise ValueError(f"`{column}` does not begin with the prompt")
    return asked, rest


def _shared(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt, chosen and rejected of two conversations that begin alike."""
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same == len(chosen) == len(rejected):
        raise ValueError("`chosen` and `rejected` are the same text")
    while same and chosen[same - 1].role != "user":
        same -= 1
    if not same:
        raise ValueError("there is no `prompt`, and `chosen` and `rejected` do not begin alike")
    return chosen[:same], chosen[same:], rejected[same:]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _label(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _own(kind: str) -> Converter:
    return lambda row: ROW_TYPES[kind].model_validate(dict(row))


# In order of preference: the first whose columns are all there is taken. `a|b` = either column.
_SHAPES: dict[str, list[tuple[str, tuple[str, ...], Converter]]] = {
    "prompts": [
        ("zephyrctl prompts", ("prompt_id", "prompt", "follow_ups"), _own("prompts")),
        ("turns", ("turns",), _prompt_from_turns),
        ("prompt", ("prompt",), _prompt_from_prompt),
        ("instruction (Alpaca)", ("instruction",), _prompt_from_instruction),
        ("messages", ("messages",), _prompt_from_messages),
        ("conversations (ShareGPT)", ("conversations",), _prompt_from_conversations),
        ("text", ("text",), _prompt_from_text),
    ],
    "sft": [
        ("zephyrctl sft", ("row_id", "prompt_id", "messages"), _own("sft")),
        ("messages", ("messages",), _sft_from_messages),
        ("conversations (ShareGPT)", ("conversations",), _sft_from_conversations),
        ("instruction, input, output (Alpaca)", ("instruction", "output"), _sft_from_alpaca),
        ("prompt, completion", ("prompt", "completion|response"), _sft_from_completion),
        ("prompt, chosen (the chosen side of pairs)", ("prompt", "chosen"), _sft_from_pair),
    ],
    "prefs": [
        ("zephyrctl prefs", ("prompt_id", "prompt", "chosen", "rejected", "tie"), _own("prefs")),
        ("prompt, chosen, rejected", ("prompt", "chosen", "rejected"), _pair),
        ("chosen, rejected (whole conversations)", ("chosen", "rejected"), _pair),
    ],
    "feedback": [("zephyrctl feedback", ("prompt_id", "prompt", "completions", "judge"), _own("feedback"))],
    "eval": [("zephyrctl eval", ("suite", "prompt_id", "score"), _own("eval"))],
}
