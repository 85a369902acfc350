"""Row by row: from the columns people have to the records of zephyrctl (pure).

Every converter takes one JSON object and gives a record; it raises ValueError saying what is wrong with the row. A
column `source` is kept, and a text in `system` or `system_prompt` becomes the system message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from zephyrctl.artifacts.shapes_messages import (
    Row,
    SaysNothing,
    before_last_answer,
    dialogue_id,
    instruction_in,
    label_in,
    messages_in,
    number_in,
    opening_of,
    text_in,
    type_of,
    with_system,
)
from zephyrctl.records import (
    Completion,
    FeedbackRow,
    Message,
    PreferenceRow,
    PromptRow,
    Record,
    SftRow,
    completion_id,
    prompt_id,
)

_QUESTIONS = ("prompt", "question", "instruction")
_SAME = "`chosen` and `rejected` are the same text"
_TEXTS = ("text", "response", "content")


def prompt_row(messages: list[Message], row: Row, follow_ups: list[str] | None = None) -> PromptRow:
    """A prompt; `follow_ups` are further user turns."""
    if not messages[-1].content.strip():
        raise ValueError("the prompt is empty")
    asked = with_system(messages, row)
    return PromptRow(
        prompt_id=prompt_id(asked), prompt=asked, follow_ups=follow_ups or [], source=_source(row)
    )


def prompt_from_column(row: Row) -> Record:
    """`prompt` or `question`: text, or a message list."""
    column = _first(row, _QUESTIONS)
    return prompt_row(messages_in(row[column], column, "user"), row)


def prompt_from_messages(row: Row) -> Record:
    """`messages` or `conversations`: all before the last answer."""
    return prompt_row(before_last_answer(_dialogue(row)), row)


def prompt_from_instruction(row: Row) -> Record:
    """Alpaca's `instruction` and `input`."""
    return prompt_row(messages_in(instruction_in(row), "instruction", "user"), row)


def prompt_from_turns(row: Row) -> Record:
    """`turns`: the first user turn and its follow-ups."""
    turns = row["turns"]
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise ValueError("`turns` must be a list of texts, none of them empty")
    return prompt_row(messages_in(turns[0], "turns", "user"), row, turns[1:])


def prompt_from_text(row: Row) -> Record:
    """`text`: one line of a text file."""
    return prompt_row(messages_in(text_in(row, "text"), "text", "user"), row)


def sft_row(messages: list[Message], row: Row) -> SftRow:
    """A dialogue to learn from. Raises SaysNothing for one without an answer: public sets hold such rows."""
    if not any(m.role == "assistant" and m.content.strip() for m in messages):
        raise SaysNothing("no answer", "there is no answer to learn from")
    said = with_system(messages, row)
    identity = prompt_id(opening_of(said))
    return SftRow(
        row_id=dialogue_id(said),
        prompt_id=identity,
        messages=said,
        seed_id=identity,
        model=label_in(row.get("model")),
        source=_source(row),
    )


def sft_from_messages(row: Row) -> Record:
    """`messages` or ShareGPT's `conversations`."""
    return sft_row(_dialogue(row), row)


def sft_from_alpaca(row: Row) -> Record:
    """Alpaca's `instruction`, `input` and `output` (or Dolly's `context` and `response`)."""
    asked = messages_in(instruction_in(row), "instruction", "user")
    answer = _first(row, ("output", "response"))
    return sft_row(asked + _answer(text_in(row, answer), answer), row)


def sft_from_two_columns(row: Row) -> Record:
    """A question (text or messages) in one column, its answer in another."""
    question, answer = _first(row, ("prompt", "question")), _first(row, ("completion", "response", "answer"))
    asked = messages_in(row[question], question, "user")
    return sft_row(asked + _answer(row[answer], answer), row)


def sft_from_pair(row: Row) -> Record:
    """The chosen side of a pair."""
    asked, answer = _split_off(row.get("prompt"), messages_in(row["chosen"], "chosen", "assistant"), "chosen")
    return sft_row(asked + answer, row)


def pair_row(row: Row) -> Record:
    """`chosen` and `rejected` as answers or as whole conversations, after `prompt` or `question`, or after what the
    conversations share.

    Raises SaysNothing where both are the same text: public pair files hold such rows.
    """
    chosen = messages_in(row["chosen"], "chosen", "assistant")
    rejected = messages_in(row["rejected"], "rejected", "assistant")
    prompt = next((row[c] for c in _QUESTIONS if row.get(c) is not None), None)
    if prompt is not None:
        asked, chosen = _split_off(prompt, chosen, "chosen")
        other, rejected = _split_off(prompt, rejected, "rejected")
        if asked != other:
            raise ValueError("`chosen` and `rejected` begin with different prompts")
    else:
        asked, chosen, rejected = _shared(chosen, rejected)
    if chosen == rejected:
        raise SaysNothing("identical", _SAME)
    asked = with_system(asked, row)
    meta = row.get("metadata")
    known = {**(meta if isinstance(meta, Mapping) else {}), **row}
    return PreferenceRow(
        prompt_id=prompt_id(asked),
        prompt=asked,
        chosen=chosen,
        rejected=rejected,
        score_chosen=number_in(known.get("score_chosen")),
        score_rejected=number_in(known.get("score_rejected")),
        chosen_model=label_in(known.get("chosen_model")),
        rejected_model=label_in(known.get("rejected_model")),
        judge=label_in(known.get("judge")),
        source=_source(row),
    )


def completions_row(row: Row) -> Record:
    """`prompt` with `completions` that nobody has rated yet: texts, where a column `model` says whose, or objects with
    `model` and `text` (or `response`, `content`).

    The judge is empty: nobody rated them.
    """
    asked = with_system(messages_in(row["prompt"], "prompt", "user"), row)
    found = row["completions"]
    if not isinstance(found, list) or not found:
        raise ValueError("`completions` must be a list with at least one completion")
    draws: Counter[str] = Counter()
    completions = []
    for place, item in enumerate(found):
        model, text = _completion(item, f"completions.{place}", row)
        draw = draws[model]
        draws[model] += 1
        completions.append(
            Completion(completion_id=completion_id(model, draw, text), model=model, text=text, draw=draw)
        )
    return FeedbackRow(
        prompt_id=prompt_id(asked), prompt=asked, completions=completions, judge="", source=_source(row)
    )


def _completion(item: Any, place: str, row: Row) -> tuple[str, str]:
    """The model that wrote a completion, and its text; a model is never made up."""
    if isinstance(item, str):
        model, text = row.get("model"), item
    elif isinstance(item, Mapping):
        model = item.get("model") or row.get("model")
        text = next((item[c] for c in _TEXTS if isinstance(item.get(c), str)), "")
        if all(item.get(c) is None for c in _TEXTS):
            raise ValueError(f"`{place}` has no text; expected one of: {', '.join(_TEXTS)}")
    else:
        raise ValueError(f"`{place}` is {type_of(item)}; expected text, or an object with model and text")
    if not isinstance(model, str) or not model.strip():
        raise ValueError(
            f"`{place}` does not say which model wrote it; "
            'write {"model": …, "text": …}, or add a column `model` for all completions of the row'
        )
    return model, text


def _dialogue(row: Row) -> list[Message]:
    """`messages` or `conversations`. Raises SaysNothing where the list is empty: public sets hold such rows."""
    column = _first(row, ("messages", "conversations"))
    if row[column] == []:
        raise SaysNothing("empty", f"`{column}` is an empty list")
    return messages_in(row[column], column, "user")


def _answer(value: Any, column: str) -> list[Message]:
    if isinstance(value, str) and not value.strip():
        raise SaysNothing("no answer", f"`{column}` is empty")
    return messages_in(value, column, "assistant")


def _source(row: Row) -> str:
    return label_in(row.get("source")) or ""


def _first(row: Row, columns: tuple[str, ...]) -> str:
    """The first of the columns that the row fills, else the first that it has."""
    filled = [c for c in columns if row.get(c) is not None]
    return (filled or [c for c in columns if c in row])[0]


def _split_off(prompt: Any, answer: list[Message], column: str) -> tuple[list[Message], list[Message]]:
    """The prompt's messages and those of the answer alone, where the answer may be a whole conversation."""
    if answer[0].role == "assistant":
        return messages_in(prompt, "prompt", "user"), answer
    if isinstance(prompt, list):
        asked = messages_in(prompt, "prompt", "user")
        if answer[: len(asked)] != asked:
            raise ValueError(f"`{column}` does not begin with the prompt")
        return asked, answer[len(asked) :]
    text = text_in({"prompt": prompt}, "prompt").strip()
    cut = len(before_last_answer(answer[:-1] or answer))
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
        raise SaysNothing("identical", _SAME)
    while same and chosen[same - 1].role != "user":
        same -= 1
    if not same:
        raise ValueError("there is no `prompt`, and `chosen` and `rejected` do not begin alike")
    return chosen[:same], chosen[same:], rejected[same:]
