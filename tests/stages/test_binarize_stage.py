"""binarize end to end: both ways to the same bytes, what is barred, the edition of H4, UltraFeedback's own files."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.table import arrow_schema
from zephyrctl.config import StageConfig
from zephyrctl.editions.resolve import resolve
from zephyrctl.errors import IntegrityError, StageRejected, UsageError
from zephyrctl.events import Recorder, Table
from zephyrctl.records import (
    Completion,
    FeedbackRow,
    Message,
    PreferenceRow,
    Rating,
    SftRow,
    prompt_id,
    split_of,
)
from zephyrctl.stages.binarize import columns
from zephyrctl.stages.binarize.config import BinarizeConfig
from zephyrctl.stages.binarize.rows import Rows
from zephyrctl.stages.binarize.run import run

ASPECTS = ("helpfulness", "honesty", "truthfulness")


class MadeConfig(StageConfig):
    """What made the feedback of these tests."""

    stage: ClassVar[str] = "gen-prefs"


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(Store.open(tmp_path / "artifacts"), Recorder())


def feedback(count: int, seed: int = 0) -> list[FeedbackRow]:
    """Random rows with every oddity that feedback may have."""
    rng = random.Random(seed)
    return [odd_row(rng, number) for number in range(count)]


def odd_row(rng: random.Random, number: int) -> FeedbackRow:
    turns = [Message(role="user", content=f"question {number} é\u2028")]
    if rng.random() < 0.3:
        turns = [
            Message(role="system", content="Be brief."),
            *turns,
            Message(role="assistant", content="?"),
            *turns,
        ]
    completions = []
    for place in range(rng.choice([0, 1, 2, 4, 4, 4, 6])):
        text = rng.choice(["", " same  text", "same text\n", f"answer {place} " * rng.randint(1, 40)])
        ratings = [
            Rating(
                aspect=a, value=v, reason=None if v else rng.choice(["n/a", "no rating"]), rationale="because"
            )
            for a in ASPECTS[: rng.randint(0, 3)]
            for v in [rng.choice([None, 1.0, 3.0, 4.0, 5.0])]
        ]
        overall = rng.choice([None, 3.0, 7.0, 8.5, 10.0])
        if overall is None and rng.random() < 0.5:
            ratings.append(Rating(aspect="overall", value=None, reason="10 or 1"))
        elif rng.random() < 0.1:
            overall = 1.0
            ratings.append(Rating(aspect="overall", value=None, reason="10 for 1"))
        completions.append(
            Completion(
                completion_id=f"c{number}-{place}",
                model=rng.choice("abc"),
                text=text,
                ratings=ratings,
                overall=overall,
            )
        )
    return FeedbackRow(
        prompt_id=prompt_id([*turns, Message(role="user", content=str(number))]),
        prompt=turns,
        completions=completions,
        judge="judge",
        source=rng.choice(["", "truthful_qa", "evol"]),
    )


def store_feedback(work: Work, rows: Sequence[FeedbackRow], name: str = "feedback") -> Artifact:
    step = Step(work, MadeConfig(seed=len(rows)), name=name, kind="feedback", inputs=[], world="real")
    with step.open() as staging:
        for row in rows:
            staging.write_rows(split_of(row.prompt_id, 0.3), [row])
        return staging.commit()


def row_by_row(artifact: Artifact, *, with_ratings: bool) -> Iterator[Rows]:
    for where, split, row in artifact.rows():
        assert isinstance(row, FeedbackRow)
        yield Rows([(where, "test" if split == "test" else "train", row)])


def made(result: StepResult) -> Artifact:
    assert result.artifact is not None
    return result.artifact


def pairs_of(artifact: Artifact) -> list[tuple[str, PreferenceRow]]:
    return [(split, row) for _, split, row in artifact.rows() if isinstance(row, PreferenceRow)]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"rejected": "all-pairs"},
    {"rejected": "nearest", "score": "mean", "ties": "margin=0.4"},
    {"rejected": "quantile=0.5", "score": "weighted", "weights": {"honesty": 2, "helpfulness": 1}},
    {"rejected": "worst", "score": "aspect:honesty", "best": "first", "ties": "keep"},
    {"drop_sources": ["truthful_qa"], "seed": 7},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_columns_and_rows_give_the_same_bytes(
    work: Work, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    store_feedback(work, feedback(700))
    monkeypatch.setattr(columns, "ROWS_IN_BATCH", 97)
    again = Work(work.store, again=True)
    config = BinarizeConfig(max_dropped=1.0, **settings)
    fast = run(config, again)
    monkeypatch.setattr(columns, "batches", row_by_row)
    slow = run(config, again)
    assert made(fast).digest == made(slow).digest
    best = [work.store.resolve(result.sides["prefs-best"]) for result in (fast, slow)]
    assert best[0].digest == best[1].digest
    assert made(fast).manifest.counts == made(slow).manifest.counts
    profiles = [(made(r).manifest.model_extra or {})["pairs"] for r in (fast, slow)]
    assert profiles[0] == profiles[1]
    assert list(made(fast).rejects()) == list(made(slow).rejects())
    assert len(pairs_of(made(fast))) == made(fast).manifest.counts["pairs"] > 50


@pytest.mark.parametrize("settings", SETTINGS)
def test_pairs_do_not_depend_on_the_order_or_choice_of_rows(work: Work, settings: dict[str, Any]) -> None:
    rows = feedback(300, seed=3)
    config = BinarizeConfig(max_dropped=1.0, **settings)
    whole = store_feedback(work, rows, "whole")
    mixed = store_feedback(work, random.Random(1).sample(rows, 300), "mixed")
    some = store_feedback(work, rows[40:160], "some")
    found = [
        {(s, p.model_dump_json()) for s, p in pairs_of(made(run(config.model_copy(update=update), work)))}
        for update in ({"feedback": str(a.ref), "out": f"prefs-{a.ref.name}"} for a in (whole, mixed, some))
    ]
    assert found[0] == found[1]
    ids = {row.prompt_id for row in rows[40:160]}
    assert found[2] == {(s, p) for s, p in found[0] if json.loads(p)["prompt_id"] in ids}


def test_all_pairs_share_the_split_of_their_prompt_and_the_best_stands_once(work: Work) -> None:
    rows = feedback(200, seed=5)
    store_feedback(work, rows)
    result = run(BinarizeConfig(rejected="all-pairs", max_dropped=1.0), work)
    pairs = pairs_of(made(result))
    by_id = {c.completion_id: (row, c) for row in rows for c in row.completions}
    assert len({(p.chosen_id, p.rejected_id) for _, p in pairs}) == len(pairs)
    for split, pair in pairs:
        row, winner = by_id[str(pair.chosen_id)]
        _, loser = by_id[str(pair.rejected_id)]
        assert (split, pair.prompt_id) == (split_of(row.prompt_id, 0.3), row.prompt_id)
        assert (pair.chosen[0].content, pair.rejected[0].content) == (winner.text, loser.text)
        assert (winner.overall or 0) > (loser.overall or 0)
        assert (pair.score_chosen, pair.score_rejected) == (winner.overall, loser.overall)
        assert (pair.chosen_model, pair.rejected_model) == (winner.model, loser.model)
    best = [r for _, _, r in work.store.resolve("prefs-best").rows() if isinstance(r, SftRow)]
    assert [r.prompt_id for r in best] == list(dict.fromkeys(p.prompt_id for _, p in pairs))
    counts = made(result).manifest.counts
    assert counts["prompts_paired"] == len(best) < counts["pairs"] == len(pairs)


def test_the_funnel_adds_up_and_is_shown(tmp_path: Path) -> None:
    seen = Recorder()
    work = Work(Store.open(tmp_path / "artifacts"), seen)
    rows = feedback(400, seed=9)
    store_feedback(work, rows)
    artifact = made(run(BinarizeConfig(max_dropped=1.0), work))
    counts = artifact.manifest.counts
    everyone = [c for row in rows for c in row.completions]
    assert counts["prompts"] == len(rows) == counts["prompts_paired"] + sum(counts["dropped"].values())
    parts = ("scored", "unscored", "empty", "flagged", "barred")
    assert counts["completions"] == len(everyone) == sum(counts[f"completions_{p}"] for p in parts)
    assert counts["rejects"] == counts["dropped"]
    tens = [r.reason for c in everyone if c.text.strip() for r in c.ratings if r.aspect == "overall"]
    assert counts["scores_mended"] == tens.count("10 for 1") > 0
    assert counts["ratings_missing"]["10 or 1"] == tens.count("10 or 1") > 0
    titles = [e.title for e in seen.events if isinstance(e, Table)]
    assert titles == ["from feedback to pairs", "lengths", "by model"]
    pairs = [p for _, p in pairs_of(artifact)]
    longer = sum(
        (len(p.chosen[0].content) > len(p.rejected[0].content))
        + (len(p.chosen[0].content) == len(p.rejected[0].content)) / 2
        for p in pairs
    )
    profile = (artifact.manifest.model_extra or {})["pairs"]
    assert profile["longer_agrees"] == round(longer / len(pairs), 4)
    assert any("a judge that picks the longer answer agrees with" in text for text in seen.texts())


def test_flagged_ids_take_no_part_and_their_file_is_an_input(work: Work, tmp_path: Path) -> None:
    rows = feedback(150, seed=2)
    store_feedback(work, rows)
    plain = made(run(BinarizeConfig(max_dropped=1.0), work))
    pairs = [p for _, p in pairs_of(plain)]
    dropped, completion, pair = pairs[0], pairs[1], pairs[2]
    flags = tmp_path / "flags.jsonl"
    entries = [
        {"prompt_id": dropped.prompt_id},
        {"completion_id": completion.chosen_id},
        {"prompt_id": pair.prompt_id, "chosen_id": pair.chosen_id, "rejected_id": pair.rejected_id},
        "nobody",
    ]
    flags.write_text("\n".join(json.dumps(e) for e in entries), encoding="utf-8")
    seen = Recorder()
    config = BinarizeConfig(max_dropped=1.0, drop=str(flags))
    artifact = made(run(config, Work(work.store, seen)))
    found = {p.prompt_id: p for _, p in pairs_of(artifact)}
    assert dropped.prompt_id not in found
    assert all(completion.chosen_id not in (p.chosen_id, p.rejected_id) for p in found.values())
    other = found.get(pair.prompt_id)
    assert other is None or {other.chosen_id, other.rejected_id} != {pair.chosen_id, pair.rejected_id}
    touched = {dropped.prompt_id, completion.prompt_id, pair.prompt_id}
    assert {i: p for i, p in found.items() if i not in touched} == {
        p.prompt_id: p for p in pairs if p.prompt_id not in touched
    }
    assert (artifact.manifest.counts["flagged_unknown"], artifact.manifest.counts["completions_flagged"]) == (
        1,
        1,
    )
    assert any("nobody" in text for text in seen.texts())
    assert "flagged" in {r["reason"] for r in artifact.rejects()}
    assert [i.role for i in artifact.manifest.inputs] == ["feedback", "drop"]
    assert run(config, work).already
    flags.write_text("other", encoding="utf-8")
    assert not run(config, work).already


def test_questions_of_a_suite_are_left_out_character_by_character(work: Work, tmp_path: Path) -> None:
    rows = feedback(60, seed=4)
    store_feedback(work, rows)
    pairs = [p for _, p in pairs_of(made(run(BinarizeConfig(max_dropped=1.0), work)))]
    question = pairs[0].prompt[-1].content
    suite = tmp_path / "suite.jsonl"
    lines = [{"question": question}, {"question": pairs[1].prompt[-1].content.upper()}]
    suite.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    artifact = made(run(BinarizeConfig(max_dropped=1.0, suites=[str(suite)]), work))
    found = {p.prompt_id for _, p in pairs_of(artifact)}
    assert {p.prompt_id for p in pairs} - found == {pairs[0].prompt_id}
    assert artifact.manifest.counts["dropped"]["in_suite"] >= 1
    assert [i.role for i in artifact.manifest.inputs] == ["feedback", "suite"]


def h4(rows: list[dict[str, Any]], folder: Path) -> str:
    path = folder / "ultrafeedback.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def raw_row(
    number: int, scores: Sequence[float], source: str = "flan", fine: int = 4, **change: Any
) -> dict[str, Any]:
    completions = [
        {
            "model": f"m{place}",
            "principle": "helpfulness",
            "custom_system_prompt": "Be of use.",
            "response": f"answer {place} of {number}",
            "critique": "Fine.",
            "overall_score": score,
            "fine-grained_score": float(fine),
            "annotations": {
                aspect: {"Rating": str(fine), "Rationale": "because"}
                for aspect in ("instruction_following", "honesty", "truthfulness", "helpfulness")
            },
        }
        for place, score in enumerate(scores)
    ]
    row = {
        "source": source,
        "instruction": f"question {number}",
        "models": [c["model"] for c in completions],
        "completions": completions,
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }
    return row | change


def test_the_edition_of_h4_on_raw_ultrafeedback(work: Work, tmp_path: Path) -> None:
    """First wins among the best, ties are kept, TruthfulQA is out, two completions are needed."""
    rows = [raw_row(n, [5, 8, 8, 3]) for n in range(200)]
    rows += [raw_row(200 + n, [6, 6, 6, 6]) for n in range(40)]
    rows += [raw_row(300, [5, 4], "truthful_qa"), raw_row(301, [5]), raw_row(302, [], completions=[])]
    rows += [raw_row(303, [10, 7, 2, 2], fine=1), raw_row(304, [10, 7, 2, 2], fine=5)]
    resolved = resolve(BinarizeConfig, {"feedback": h4(rows, tmp_path)}, edition="zephyr-h4")
    artifact = made(run(resolved.config, work))
    pairs = {p.prompt[0].content: p for _, p in pairs_of(artifact)}
    assert artifact.manifest.counts["dropped"] == {"single_completion": 2, "source": 1}
    first = [pairs[f"question {n}"] for n in range(200)]
    assert {p.chosen_model for p in first} == {"m1"}
    assert {p.rejected_model for p in first} == {"m0", "m2", "m3"}
    assert {p.tie for p in first} == {True, False}
    level = [pairs[f"question {200 + n}"] for n in range(40)]
    assert {(p.chosen_model, p.tie) for p in level} == {("m0", True)}
    assert {p.rejected_model for p in level} == {"m1", "m2", "m3"}
    assert all(p.chosen != p.rejected for p in pairs.values())
    assert pairs["question 303"].chosen_model == "m1"
    assert pairs["question 304"].chosen_model == "m0"
    assert artifact.manifest.counts["scores_mended"] == 1
    assert resolved.label == "zephyr-h4"
    changed = resolve(BinarizeConfig, {"ties": "drop"}, edition="zephyr-h4")
    assert changed.label == "zephyr-h4 + ties"


def test_what_was_dropped_on_purpose_is_no_bad_outcome(work: Work) -> None:
    rows = [row for row in feedback(300, seed=6) if len(row.completions) >= 4]
    store_feedback(work, [row.model_copy(update={"source": "out"}) for row in rows[:100]] + rows[100:110])
    artifact = made(run(BinarizeConfig(drop_sources=["out"], max_dropped=0.7), work))
    assert artifact.manifest.counts["dropped"]["source"] == 100
    assert artifact.manifest.counts["completions_barred"] > 0
    with pytest.raises(StageRejected, match="no pair"):
        run(BinarizeConfig(drop_sources=["out", "", "evol", "truthful_qa"]), work)
    assert work.store.names() == ["feedback", "prefs", "prefs-best"]


def test_a_weight_for_what_nobody_rated_is_named(work: Work) -> None:
    store_feedback(work, feedback(40))
    with pytest.raises(UsageError, match="'wit'") as caught:
        run(BinarizeConfig(score="weighted", weights={"honesty": 1, "wit": 1}, max_dropped=1.0), work)
    assert "honesty" in str(caught.value.hint)
    assert work.store.names() == ["feedback"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"prompt": [{"role": "bot", "content": "x"}]}, "role"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "end with a user message"),
        ({"prompt": []}, "end with a user message"),
        ({"judge": None}, "judge"),
        ({"source": None}, "source"),
        ({"completions": [{"completion_id": "a", "model": "m", "text": None, "ratings": []}]}, "text"),
        (
            {"completions": [{"completion_id": "a", "model": "m", "text": "t", "ratings": []}] * 2},
            "share one",
        ),
    ],
)
def test_stored_rows_that_are_no_feedback_are_named(work: Work, change: dict[str, Any], why: str) -> None:
    rows = [row.model_dump() for row in feedback(5)]
    rows[3] |= change
    step = Step(work, MadeConfig(), name="feedback", kind="feedback", inputs=[], world="real")
    with step.open() as staging:
        staging.write_batch("train", pa.RecordBatch.from_pylist(rows, schema=arrow_schema(FeedbackRow)))
        staging.commit()
    with pytest.raises(IntegrityError, match=why) as caught:
        run(BinarizeConfig(max_dropped=1.0), work)
    assert "feedback@v1 row 4" in caught.value.message
    assert work.store.names() == ["feedback"]


def test_what_can_be_asked_instead_is_named(work: Work) -> None:
    store_feedback(
        work,
        [
            row.model_copy(
                update={"completions": [c.model_copy(update={"overall": None}) for c in row.completions]}
            )
            for row in feedback(20)
        ],
    )
    with pytest.raises(StageRejected, match="no pair") as caught:
        run(BinarizeConfig(), work)
    assert "--score mean" in str(caught.value.hint)
    with pytest.raises(ValueError, match="a space after the colon"):
        BinarizeConfig(score="weighted", weights={"honesty:1": None})  # type: ignore[dict-item]
