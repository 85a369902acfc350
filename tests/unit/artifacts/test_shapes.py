from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.artifacts.shapes import as_prompt, convert, detect, unstorable
from zephyrctl.records import ROW_TYPES, Message, PreferenceRow, PromptRow, Record, SftRow


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
    ]
)


@given(st.sampled_from(sorted(ROW_TYPES)), st.dictionaries(COLUMNS, JSON, max_size=5))
def test_any_row_is_taken_or_refused_in_words(kind: str, row: dict[str, Any]) -> None:
    try:
        record = take(kind, row)
    except ValueError:
        return
    assert isinstance(record, ROW_TYPES[kind])
