"""Prompts against suites: where suites are looked for, what is dropped, counted, said and recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seeds import from_package
from zephyrctl.benchmarks.decontamination import Decontaminator, Hit, open_decontaminator
from zephyrctl.benchmarks.suites import load_suites
from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.events import Note, Recorder, Warning_, silent
from zephyrctl.project import Project
from zephyrctl.records import Message, PromptRow, prompt_id

ITEM = "Describe in two paragraphs how a canal lock lifts a barge from the lower to the upper water level."
OTHER = "Name three things that a ferry captain checks before leaving the harbour in thick fog at night."


@pytest.fixture
def suites(tmp_path: Path) -> Path:
    folder = tmp_path / "my-suites"
    folder.mkdir()
    mt_bench = {"question_id": 81, "category": "writing", "turns": [ITEM, "Rewrite it as a poem."]}
    (folder / "question.jsonl").write_text(json.dumps(mt_bench) + "\n")
    (folder / "quiz.jsonl").write_text(json.dumps({"prompt": OTHER}) + "\n")
    return folder


def seed(*texts: str, follow_ups: tuple[str, ...] = (), position: int = 0) -> Seed:
    """User, assistant, user, … and a split."""
    prompt = [Message(role="assistant" if n % 2 else "user", content=text) for n, text in enumerate(texts)]
    row = PromptRow(prompt_id=prompt_id(prompt), prompt=prompt, follow_ups=list(follow_ups), source="mine")
    return Seed(f"mine.jsonl:{position + 1}", "train", row, position)


def opened(folder: Path, recorder: Recorder | None = None) -> Decontaminator:
    return Decontaminator(load_suites([folder]), recorder or silent)


def test_contaminated_prompts_are_dropped_with_their_reason(suites: Path) -> None:
    recorder = Recorder()
    against = opened(suites, recorder)
    seeds = [
        seed("How do I prune a pear tree?", position=0),
        seed(ITEM, position=1),
        seed(f"Please: {OTHER.lower()} Thank you!", position=2),
        seed("Tell me about boats.", follow_ups=(ITEM.upper(),), position=3),
    ]
    kept, rejects = against.sift(seeds, drop=True)
    assert kept == seeds[:1]
    assert [(r["where"], r["reason"]) for r in rejects] == [
        ("mine.jsonl:2", "contaminated"), ("mine.jsonl:3", "contaminated"), ("mine.jsonl:4", "contaminated"),
    ]  # fmt: skip
    assert rejects[0]["detail"] == f"mt-bench/81 (exact: {ITEM})"
    assert rejects[1]["detail"].startswith("quiz/quiz:1 (13-gram: name three things that")
    assert rejects[2]["detail"].startswith("mt-bench/81 (normalised: ")
    assert PromptRow(**json.loads(rejects[0]["row"])) == seeds[1].row
    (warning,) = recorder.events
    assert isinstance(warning, Warning_)
    assert warning.text.startswith("3 of 4 prompts overlap with evaluation suites and are dropped:")
    assert "mine.jsonl:3: quiz/quiz:1 (13-gram" in warning.text


def test_kept_ones_are_still_counted_and_said(suites: Path) -> None:
    recorder = Recorder()
    against = opened(suites, recorder)
    seeds = [seed(ITEM), seed("Something else entirely, I think.")]
    assert against.sift(seeds, drop=False) == (seeds, [])
    assert "1 of 2 prompts" in recorder.texts()[0]
    assert "kept" in recorder.texts()[0]
    record = against.record()
    assert (record["compared"], record["hits"], record["dropped"]) == (2, 1, 0)


def test_only_the_first_hits_are_listed(suites: Path) -> None:
    recorder = Recorder()
    against = opened(suites, recorder)
    against.sift([seed(ITEM, position=n) for n in range(30)], drop=True)
    assert recorder.texts()[0].count("mt-bench/81") == 5
    assert "… and 25 more" in recorder.texts()[0]
    assert len(against.record()["examples"]) == 20


def test_what_the_assistant_says_is_not_compared(suites: Path) -> None:
    against = opened(suites)
    assert against.hit(seed("Give me an exercise.", ITEM, "Thanks, I will try that.").row.prompt) is None
    assert against.hit(seed("Give me an exercise.", "Which?", ITEM).row.prompt) is not None
    assert (
        against.hit([Message(role="system", content=ITEM), Message(role="user", content="Go.")]) is not None
    )


def test_the_record_adds_up(suites: Path) -> None:
    against = opened(suites)
    against.sift([seed(ITEM), seed(OTHER), seed("Why is rain wet?")], drop=True)
    message = [Message(role="user", content=f"{OTHER} Explain.")]
    assert against.hit(message, drop=True) == Hit(
        "quiz",
        "quiz:1",
        "13-gram",
        "name three things that a ferry captain checks before leaving the harbour in",
    )
    against.hit(message)
    assert against.hit([Message(role="user", content="Why is snow white?")], drop=True) is None
    record = against.record()
    (mt_bench, quiz) = load_suites([suites])
    assert record["suites"] == [
        {"name": "mt-bench", "digest": mt_bench.digest, "items": 1},
        {"name": "quiz", "digest": quiz.digest, "items": 1},
    ]
    assert record["compared"] == 6
    assert record["hits"] == 4 == sum(record["by_suite"].values()) == sum(record["by_how"].values())
    assert record["dropped"] == 3
    assert record["by_suite"] == {"mt-bench": 1, "quiz": 3}
    assert record["by_how"] == {"13-gram": 2, "exact": 2}
    assert record["examples"][0] == {
        "prompt_id": seed(ITEM).row.prompt_id, "item": "mt-bench/81", "how": "exact", "overlap": ITEM,
    }  # fmt: skip
    assert record["examples"][2]["prompt_id"] == prompt_id(message)
    assert record["method"]["how"] == ["exact", "normalised", "13-gram"]
    json.dumps(record)


def test_suites_are_inputs_of_the_step(suites: Path) -> None:
    found = opened(suites).inputs()
    assert [(i.role, i.ref, i.kind) for i in found] == [
        ("suite", "mt-bench", "suite"),
        ("suite", "quiz", "suite"),
    ]
    assert [i.digest for i in found] == [suite.digest for suite in load_suites([suites])]


def test_where_suites_are_looked_for(suites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorder = Recorder()
    none = open_decontaminator([], Project(), recorder)
    assert none.inputs() == []
    (note,) = recorder.events
    assert isinstance(note, Note)
    assert "zephyrctl.yaml: suites: DIR" in note.text

    (tmp_path / "suites").mkdir()
    assert open_decontaminator([], Project(), silent).inputs() == []
    (tmp_path / "suites" / "riddles.jsonl").write_text('{"question": "What has roots that nobody sees?"}\n')
    assert [i.ref for i in open_decontaminator([], Project(), silent).inputs()] == ["riddles"]

    project = Project(suites=str(suites))
    recorder = Recorder()
    assert [i.ref for i in open_decontaminator([], project, recorder).inputs()] == ["mt-bench", "quiz"]
    assert "mt-bench (1), quiz (1)" in recorder.texts()[0]
    named = open_decontaminator([str(suites / "quiz.jsonl"), "suites"], project, silent)
    assert [i.ref for i in named.inputs()] == ["quiz", "riddles"]


def test_a_place_that_is_named_must_hold_suites(tmp_path: Path) -> None:
    with pytest.raises(RefNotFound, match="nowhere"):
        open_decontaminator([str(tmp_path / "nowhere")], Project(), silent)
    with pytest.raises(RefNotFound, match="nowhere"):
        open_decontaminator([], Project(suites=str(tmp_path / "nowhere")), silent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no evaluation suites there"):
        open_decontaminator([str(tmp_path / "empty")], Project(), silent)
    (tmp_path / "scores.jsonl").write_text('{"score": 3}\n')
    with pytest.raises(UsageError, match=r"scores\.jsonl:1"):
        open_decontaminator([str(tmp_path / "scores.jsonl")], Project(), silent)


def test_without_suites_all_passes_and_nothing_is_counted() -> None:
    against = Decontaminator([])
    seeds = [seed(ITEM)]
    assert against.sift(seeds, drop=True) == (seeds, [])
    assert against.hit(seeds[0].row.prompt, drop=True) is None
    record = against.record()
    assert (record["suites"], record["compared"], record["hits"], record["examples"]) == ([], 0, 0, [])


def test_every_published_question_is_found_and_no_shipped_seed(parity_data: Path) -> None:
    against = open_decontaminator(
        [str(parity_data / "mt_bench" / "question.jsonl"), str(parity_data / "alpaca_eval")],
        Project(),
        silent,
    )
    shipped = from_package(None).load(seed=1, test_fraction=0.1)
    assert against.sift(shipped, drop=True) == (shipped, [])
    for suite in load_suites([parity_data / "mt_bench" / "question.jsonl"]):
        for item in suite.items:
            for text in item.texts:
                assert against.hit([Message(role="user", content=text.title())]) is not None
