"""Completions that are there already: identity kept, ratings forgotten, nothing asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyrctl.artifacts.adopt import open_source
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.sketch import Sketch
from zephyrctl.records import (
    Completion,
    FeedbackRow,
    Message,
    Rating,
    SecondOpinion,
    completion_id,
    prompt_id,
    split_of,
)
from zephyrctl.stages.gen_prefs.existing import Existing, GivenPrompts


def completion(model: str, text: str) -> Completion:
    return Completion(
        completion_id=completion_id(model, 1, text),
        model=model,
        text=text,
        draw=1,
        principle="honesty",
        ratings=[Rating(aspect="honesty", value=3.0, position=2)],
        overall=10.0,
        critique="Fine.",
        opinions=[SecondOpinion(judge="other", why="margin", overall=2.0)],
    )


def feedback(question: str, *texts: str) -> FeedbackRow:
    prompt = [Message(role="user", content=question)]
    made = [completion(f"m{i}", text) for i, text in enumerate(texts)]
    return FeedbackRow(
        prompt_id=prompt_id(prompt), prompt=prompt, completions=made, judge="old", source="flan"
    )


def given(tmp_path: Path, *rows: FeedbackRow, limit: int | None = None) -> GivenPrompts:
    path = tmp_path / "feedback.jsonl"
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return GivenPrompts(open_source(Store.open(tmp_path / "artifacts"), str(path), "feedback"), limit)


def nobody(asks: object, task: str) -> list[object]:
    raise AssertionError("nothing may be asked")


def test_what_a_completion_is_stays_and_what_was_said_of_it_goes(tmp_path: Path) -> None:
    prompts = given(tmp_path, feedback("q", "one", "two"))
    [item] = prompts.load(seed=42, test_fraction=0.1)
    [answered] = Existing(prompts).answer([item], nobody)  # type: ignore[arg-type]
    before = feedback("q", "one", "two").completions
    assert [(c.completion_id, c.model, c.text, c.draw, c.principle) for c in answered.kept] == [
        (c.completion_id, c.model, c.text, 1, "honesty") for c in before
    ]
    for c in answered.kept:
        assert (c.ratings, c.overall, c.critique, c.opinions) == ([], None, None, [])
    assert (item.row.source, item.where) == ("flan", f"{tmp_path / 'feedback.jsonl'}:1")


def test_an_empty_text_is_left_out_and_counted(tmp_path: Path) -> None:
    prompts = given(tmp_path, feedback("q", "one", " \n", "three"))
    [answered] = Existing(prompts).answer(prompts.load(seed=42, test_fraction=0.1), nobody)  # type: ignore[arg-type]
    assert [c.text for c in answered.kept] == ["one", "three"]
    assert answered.reasons == {"empty": 1}


def test_rows_of_a_file_are_split_by_hash_and_more_contain_fewer(tmp_path: Path) -> None:
    rows = [feedback(f"q{i}", "a", "b") for i in range(30)]
    whole = given(tmp_path, *rows).load(seed=42, test_fraction=0.5)
    assert [item.split for item in whole] == [split_of(row.prompt_id, 0.5) for row in rows]
    assert [item.position for item in whole] == list(range(30))
    few = given(tmp_path, *rows, limit=10).load(seed=42, test_fraction=0.5)
    assert few == whole[:10]


def test_the_sketch_asks_nobody_and_counts_the_texts(tmp_path: Path) -> None:
    prompts = given(
        tmp_path, feedback("q", "x" * 400, "y" * 400), feedback("r", "z" * 400, "w" * 400, "v" * 400)
    )
    items = prompts.load(seed=42, test_fraction=0.1)
    answerer, sketch = Existing(prompts), Sketch()
    assert answerer.draw(sketch, items).likely == pytest.approx(5 * 100)
    assert (sketch.parts, answerer.providers(), answerer.inputs()) == ([], [], [])
    assert answerer.most == 3
    assert "feedback.jsonl" in answerer.named
