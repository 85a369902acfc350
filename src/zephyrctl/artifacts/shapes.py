"""From the row shapes people have to the row types of zephyrctl (pure).

The shape of a file is that of its first row. Every converter takes one JSON object and gives a record; it
raises ValueError saying what is wrong with the row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from zephyrctl.artifacts import shapes_rows as rows
from zephyrctl.artifacts.shapes_messages import Row, before_last_answer
from zephyrctl.artifacts.ultrafeedback import ultrafeedback_row
from zephyrctl.records import (
    ROW_TYPES,
    FeedbackRow,
    PreferenceRow,
    PromptRow,
    Record,
    SftRow,
    explain,
    prompt_id,
)

Converter = Callable[[Row], Record]


def detect(kind: str, row: Row) -> str:
    """The shape of a row, as it will be stated. Raises ValueError naming the shapes that `kind` accepts."""
    for shape, keys, _ in _SHAPES[kind]:
        if all(_has(row, key) for key in keys):
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
        messages = before_last_answer(row.messages)
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
        if value.isascii():
            return None
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"text holds a lone surrogate at character {error.start}"
    elif isinstance(value, dict):
        for name, inner in value.items():
            if why := unstorable(name) or unstorable(inner):
                return why
    elif isinstance(value, list):
        for inner in value:
            if why := unstorable(inner):
                return why
    return None


def _has(row: Row, key: str) -> bool:
    return any(k in row for k in key.split("|"))


def _own(kind: str) -> Converter:
    return lambda row: ROW_TYPES[kind].model_validate(dict(row))


_ULTRAFEEDBACK = "instruction, completions (UltraFeedback)"

# In order of preference: the first whose columns are all there is taken. `a|b` = either column.
_SHAPES: dict[str, list[tuple[str, tuple[str, ...], Converter]]] = {
    "prompts": [
        ("zephyrctl prompts", ("prompt_id", "prompt", "follow_ups"), _own("prompts")),
        ("turns", ("turns",), rows.prompt_from_turns),
        ("prompt", ("prompt",), rows.prompt_from_column),
        (_ULTRAFEEDBACK, ("instruction", "completions"), rows.prompt_from_column),
        ("instruction (Alpaca)", ("instruction",), rows.prompt_from_instruction),
        ("messages", ("messages",), rows.prompt_from_messages),
        ("conversations (ShareGPT)", ("conversations",), rows.prompt_from_messages),
        ("question", ("question",), rows.prompt_from_column),
        ("text", ("text",), rows.prompt_from_text),
    ],
    "sft": [
        ("zephyrctl sft", ("row_id", "prompt_id", "messages"), _own("sft")),
        ("messages", ("messages",), rows.sft_from_messages),
        ("conversations (ShareGPT)", ("conversations",), rows.sft_from_messages),
        ("instruction, input, output (Alpaca)", ("instruction", "output"), rows.sft_from_alpaca),
        ("prompt, completion", ("prompt", "completion|response"), rows.sft_from_two_columns),
        ("instruction, context, response (Dolly)", ("instruction", "response"), rows.sft_from_alpaca),
        ("question, answer", ("question", "answer|response"), rows.sft_from_two_columns),
        ("prompt, chosen (the chosen side of pairs)", ("prompt", "chosen"), rows.sft_from_pair),
    ],
    "prefs": [
        ("zephyrctl prefs", ("prompt_id", "prompt", "chosen", "rejected", "tie"), _own("prefs")),
        ("prompt, chosen, rejected", ("prompt", "chosen", "rejected"), rows.pair_row),
        ("question, chosen, rejected", ("question", "chosen", "rejected"), rows.pair_row),
        ("instruction, chosen, rejected", ("instruction", "chosen", "rejected"), rows.pair_row),
        ("chosen, rejected (whole conversations)", ("chosen", "rejected"), rows.pair_row),
    ],
    "feedback": [
        ("zephyrctl feedback", ("prompt_id", "prompt", "completions", "judge"), _own("feedback")),
        (_ULTRAFEEDBACK, ("instruction", "completions"), ultrafeedback_row),
        ("prompt, completions (not rated)", ("prompt", "completions"), rows.completions_row),
    ],
    "eval": [("zephyrctl eval", ("suite", "prompt_id", "score"), _own("eval"))],
    "logprobs": [("zephyrctl logprobs", ("pair", "chosen", "rejected", "chosen_tokens"), _own("logprobs"))],
}
