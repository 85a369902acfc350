from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.artifacts.shapes import as_prompt, convert, detect, unstorable
from zephyrctl.records import ROW_TYPES, FeedbackRow, Message, PreferenceRow, PromptRow, Record, SftRow


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def take(kind: str, row: dict[str, Any]) -> Record:
    return convert(kind, detect(kind, row), row)


def texts(messages: list[Message]) -> list[str]:
    return [f"{m.role}: {m.content}" for m in messages]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "hello"}, ["user: hello"]),
        ({"instruction": "add", "input": "1 2"}, ["user: add\n\n1 2"]),
        ({"instruction": "add", "input": ""}, ["user: add"]),
        ({"messages": [user("a"), assistant("b")]}, ["user: a"]),
        (
            {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]},
            ["user: a", "assistant: b", "user: c"],
        ),
        ({"prompt": [{"role": "system", "content": "s"}, user("a")]}, ["system: s", "user: a"]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, ["user: a"]),
        ({"text": "hello"}, ["user: hello"]),
        ({"question": "hello", "answer": "hi"}, ["user: hello"]),
        ({"question": "hello", "system": "be kind"}, ["system: be kind", "user: hello"]),
        ({"instruction": "add", "completions": [{"model": "m", "response": "3"}]}, ["user: add"]),
    ],
)
def test_shapes_of_prompts(row: dict[str, Any], prompt: list[str]) -> None:
    found = take("prompts", row)
    assert isinstance(found, PromptRow)
    assert texts(found.prompt) == prompt


def test_turns_are_a_prompt_and_its_follow_ups() -> None:
    found = take("prompts", {"turns": ["a", "b", "c"]})
    assert isinstance(found, PromptRow)
    assert texts(found.prompt) == ["user: a"]
    assert found.follow_ups == ["b", "c"]
    assert found.prompt_id == hashlib.sha256(b"a").hexdigest()


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("q"), assistant("a")]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [user("q")], "response": [assistant("a")]},
        {"question": "q", "answer": "a"},
        {"instruction": "q", "context": "", "response": "a", "category": "open"},
        {"prompt": "q", "prompt_id": "0", "messages": [user("q"), assistant("a")]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": ""},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
    ],
)
def test_all_shapes_of_one_dialogue_give_one_row(row: dict[str, Any]) -> None:
    found = take("sft", row)
    assert isinstance(found, SftRow)
    assert texts(found.messages) == ["user: q", "assistant: a"]
    assert found == take("sft", {"messages": [user("q"), assistant("a")]})


PAIRS: list[dict[str, Any]] = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
    {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
    {"prompt": [user("q")], "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
    {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
]


@pytest.mark.parametrize("row", PAIRS)
def test_all_shapes_of_one_pair_give_one_row(row: dict[str, Any]) -> None:
    found = take("prefs", row)
    assert isinstance(found, PreferenceRow)
    assert (texts(found.prompt), texts(found.chosen), texts(found.rejected)) == (
        ["user: q"],
        ["assistant: a"],
        ["assistant: b"],
    )


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_becomes_the_system_message_everywhere(column: str) -> None:
    extra = {column: "be kind"}
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    dialogue = take("sft", {"conversations": turns, **extra})
    assert isinstance(dialogue, SftRow)
    assert texts(dialogue.messages) == ["system: be kind", "user: q", "assistant: a"]
    pair = take("prefs", {"question": "q", "chosen": "a", "rejected": "b", **extra})
    assert isinstance(pair, PreferenceRow)
    assert texts(pair.prompt) == ["system: be kind", "user: q"]
    own = take(
        "sft",
        {"messages": [{"role": "system", "content": "s"}, *dialogue.model_dump()["messages"][1:]], **extra},
    )
    assert isinstance(own, SftRow)
    assert texts(own.messages)[0] == "system: s"


def test_context_of_an_instruction_is_not_lost() -> None:
    row = take("sft", {"instruction": "sum up", "context": "a long text", "response": "short"})
    assert isinstance(row, SftRow)
    assert texts(row.messages) == ["user: sum up\n\na long text", "assistant: short"]


@pytest.mark.parametrize(
    "completions",
    [
        [{"model": "m", "text": "a"}, {"model": "m", "response": "b"}, {"model": "n", "content": "a"}],
        [{"model": "m", "text": "a"}, {"text": "b"}, {"model": "n", "text": "a"}],
    ],
)
def test_completions_nobody_rated_are_feedback_without_ratings(completions: list[dict[str, str]]) -> None:
    row = {"prompt": "q", "completions": completions, "model": "m"}
    assert detect("feedback", row) == "prompt, completions (not rated)"
    found = take("feedback", row)
    assert isinstance(found, FeedbackRow)
    assert [(c.model, c.draw, c.text) for c in found.completions] == [
        ("m", 0, "a"), ("m", 1, "b"), ("n", 0, "a"),
    ]  # fmt: skip
    assert found.judge == ""
    assert all(c.ratings == [] and c.overall is None for c in found.completions)
    assert len({c.completion_id for c in found.completions}) == 3


def test_plain_texts_as_completions_belong_to_the_model_the_row_names() -> None:
    found = take("feedback", {"prompt": [user("q")], "completions": ["a", "b"], "model": "m"})
    assert isinstance(found, FeedbackRow)
    assert [(c.model, c.draw) for c in found.completions] == [("m", 0), ("m", 1)]


def test_a_raw_row_of_ultrafeedback_is_feedback() -> None:
    rated = {"Rating": "4", "Rationale": "fine"}
    row = {
        "source": "flan", "instruction": "add 1 and 2", "models": ["m"], "correct_answers": ["None"],
        "completions": [{"model": "m", "response": "3", "annotations": {"honesty": rated}, "overall_score": 7.5}],
    }  # fmt: skip
    assert "UltraFeedback" in detect("feedback", row)
    found = take("feedback", row)
    assert isinstance(found, FeedbackRow)
    assert (found.source, found.completions[0].overall) == ("flan", 7.5)
    assert texts(as_prompt(found).prompt) == ["user: add 1 and 2"]


def test_a_shared_beginning_of_several_turns_becomes_the_prompt() -> None:
    start = [user("q"), assistant("a"), user("more")]
    row = {"prompt": "q", "chosen": [*start, assistant("x")], "rejected": [*start, assistant("y")]}
    found = take("prefs", row)
    assert isinstance(found, PreferenceRow)
    assert texts(found.prompt) == ["user: q", "assistant: a", "user: more"]
    assert texts(found.chosen) == ["assistant: x"]


def test_scores_are_taken_from_columns_or_metadata() -> None:
    found = take(
        "prefs", {**PAIRS[0], "metadata": {"score_chosen": 8, "score_rejected": "7"}, "score_rejected": 6.5}
    )
    assert isinstance(found, PreferenceRow)
    assert (found.score_chosen, found.score_rejected) == (8.0, 6.5)


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("prefs", {"prompt": "q", "chosen": "a", "rejected": "a"}, "same text"),
        ("prefs", {"prompt": "q", "chosen": "a", "rejected": None}, "missing"),
        ("prefs", {"prompt": "q", "chosen": "a", "rejected": 3}, "a number"),
        ("prefs", {"prompt": "q", "chosen": "", "rejected": "b"}, "`chosen` is empty"),
        (
            "prefs",
            {"prompt": "z", "chosen": [user("q"), assistant("a")], "rejected": "b"},
            "begin with the prompt",
        ),
        (
            "prefs",
            {"chosen": [user("p"), assistant("a")], "rejected": [user("q"), assistant("b")]},
            "begin alike",
        ),
        (
            "prefs",
            {"prompt": "q", "chosen": [user("q")], "rejected": [user("q"), assistant("b")]},
            "assistant",
        ),
        ("sft", {"messages": [user("q")]}, "no answer"),
        ("sft", {"messages": [user("q"), assistant("  ")]}, "no answer"),
        ("sft", {"messages": []}, "empty list"),
        ("sft", {"messages": [user("q"), {"role": "robot", "content": "a"}]}, "'robot'"),
        ("sft", {"messages": [user("q"), {"role": "assistant", "content": None}]}, "missing"),
        ("sft", {"messages": [assistant("a"), user("q")]}, "begin with the assistant"),
        ("sft", {"messages": "text"}, "no answer"),
        ("sft", {"instruction": "q", "output": ["a"]}, "a list"),
        ("prompts", {"prompt": " "}, "empty"),
        ("prompts", {"turns": ["a", ""]}, "none of them empty"),
        ("prompts", {"messages": [assistant("a")]}, "no user message"),
        ("prompts", {"title": "q"}, "columns (title)"),
        ("feedback", {"prompt": "q"}, "no feedback rows"),
        ("feedback", {"prompt": "q", "completions": ["a"]}, "which model wrote it"),
        ("feedback", {"prompt": "q", "completions": [{"text": "a", "model": ""}]}, "which model wrote it"),
        ("feedback", {"prompt": "q", "completions": [{"model": "m"}]}, "has no text"),
        ("feedback", {"prompt": "q", "completions": []}, "at least one"),
        ("feedback", {"prompt": "q", "completions": [3], "model": "m"}, "`completions.0` is a number"),
        ("sft", {"question": "q", "answer": 2, "choices": ["a", "b"]}, "`answer` is a number"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(kind: str, row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        take(kind, row)
    assert words in str(caught.value)


def test_a_row_that_lacks_a_column_of_the_files_shape_names_it() -> None:
    with pytest.raises(ValueError, match="no column rejected"):
        convert("prefs", detect("prefs", PAIRS[0]), {"prompt": "q", "chosen": "a"})


@pytest.mark.parametrize("kind", sorted(ROW_TYPES))
def test_rows_of_our_own_read_back_as_they_are(kind: str) -> None:
    asked, said, other = [user("q")], [assistant("a")], [assistant("b")]
    samples: dict[str, dict[str, Any]] = {
        "prompts": {"prompt_id": "1", "prompt": asked, "follow_ups": ["x"], "source": "s"},
        "sft": {"row_id": "1", "prompt_id": "2", "messages": asked + said, "parent": "p", "round": 1},
        "prefs": {"prompt_id": "1", "prompt": asked, "chosen": said, "rejected": other},
        "feedback": {"prompt_id": "1", "prompt": asked, "completions": [], "judge": "j"},
        "eval": {"suite": "exact", "decoding": "greedy", "prompt_id": "1", "turn": 1, "family": "f"}
        | {"question": "q", "answer": "a", "score": 1.0, "judge": "j"},
        "logprobs": {
            "pair": "0" * 64,
            "chosen": -1.5,
            "rejected": -2.0,
            "chosen_tokens": 3,
            "rejected_tokens": 4,
        },
    }
    record = ROW_TYPES[kind].model_validate(samples[kind])
    row = record.model_dump(mode="json")
    assert detect(kind, row) == f"zephyrctl {kind}"
    assert take(kind, row) == record


def test_prompts_of_stored_rows_stop_before_the_last_answer() -> None:
    said = [user("a"), assistant("b"), user("c"), assistant("d")]
    row = take("sft", {"messages": said})
    assert texts(as_prompt(row).prompt) == ["user: a", "assistant: b", "user: c"]
    assert texts(as_prompt(take("prefs", PAIRS[0])).prompt) == ["user: q"]


def test_what_no_table_can_hold_is_found_at_any_depth() -> None:
    assert unstorable({"a": [{"b": "x\0"}]}) == "text holds a NUL character"
    assert unstorable({"a": {"\udc00": 1}}) == "text holds a lone surrogate at character 0"
    assert unstorable({"a": ["\U0001f600", 1, None]}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
COLUMNS = st.sampled_from(
    [
        "prompt",
        "chosen",
        "rejected",
        "messages",
        "conversations",
        "instruction",
        "output",
        "turns",
        "text",
        "prompt_id",
        "completions",
        "question",
        "answer",
        "system",
        "model",
    ]
)


@given(st.sampled_from(sorted(ROW_TYPES)), st.dictionaries(COLUMNS, JSON, max_size=5))
def test_any_row_is_taken_or_refused_in_words(kind: str, row: dict[str, Any]) -> None:
    try:
        record = take(kind, row)
    except ValueError:
        return
    assert isinstance(record, ROW_TYPES[kind])
