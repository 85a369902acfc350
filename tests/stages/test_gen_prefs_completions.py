"""gen-prefs over completions that exist, with other raters than a teacher, second opinions and the judge's audit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import RefNotFound, UsageError, WrongKind
from zephyrctl.events import Recorder
from zephyrctl.project import Project
from zephyrctl.records import FeedbackRow
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.run import run as gen_prefs
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.run import run as gen_sft
from zephyrctl.testing.teacher import LoopbackTeacher

VERIFIER = '''
def words(prompt, completion):
    """Fewer words are better; nothing to say about one that says no word."""
    assert prompt[-1]["role"] == "user"
    return -len(completion.split()) if "cannot" not in completion else None
'''


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(Store.open(tmp_path / "artifacts"), Recorder())


@pytest.fixture
def verifier(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(VERIFIER)
    return f"{path}:words"


@pytest.fixture
def box() -> Iterator[tuple[LoopbackTeacher, Project]]:
    with LoopbackTeacher() as server:
        section = {"base_url": server.openai_url, "price": {"in": 100, "out": 400}}
        yield server, Project.model_validate({"endpoints": {"box": section}})


def made(result: StepResult) -> Artifact:
    assert result.artifact is not None
    return result.artifact


def rows_of(artifact: Artifact) -> list[tuple[str, FeedbackRow]]:
    return [(split, row) for _, split, row in artifact.rows() if isinstance(row, FeedbackRow)]


def told(work: Work) -> list[str]:
    recorder = work.emit.outside  # type: ignore[attr-defined]
    assert isinstance(recorder, Recorder)
    return recorder.texts()


def texts(row: FeedbackRow) -> list[tuple[str, str, str, int]]:
    return [(c.completion_id, c.model, c.text, c.draw) for c in row.completions]


def asked_of(artifact: Artifact) -> dict[str, int]:
    return {t["model"]: t["calls"] for t in artifact.manifest.teachers if t["calls"]}


def test_existing_completions_are_rated_again_and_none_is_made(work: Work) -> None:
    gen_sft(GenSftConfig(teacher="sandbox", rows=20, test_fraction=0.4), work)
    first = made(gen_prefs(GenPrefsConfig(teacher="sandbox", principles="ultrafeedback", rows=25), work))
    config = GenPrefsConfig(teacher="sandbox:fair-judge", completions="feedback", out="again")
    again = made(gen_prefs(config, work))
    assert str(again.ref) == "again@v1"
    assert next((i.role, i.ref) for i in again.manifest.inputs) == ("completions", "feedback@v1")
    assert list(asked_of(again)) == ["sandbox:fair-judge"]
    before = {row.prompt_id: (split, row) for split, row in rows_of(first)}
    for split, row in rows_of(again):
        home, old = before.pop(row.prompt_id)
        assert (split, texts(row), row.source) == (home, texts(old), old.source)
        assert [c.principle for c in row.completions] == [c.principle for c in old.completions]
        assert row.judge == "sandbox:fair-judge"
        assert all(len(c.ratings) == 4 and c.overall is not None for c in row.completions)
    assert not before
    assert any(
        [c.overall for c in row.completions] != [c.overall for c in old.completions]
        for (_, row), (_, old) in zip(
            sorted(rows_of(again), key=_id), sorted(rows_of(first), key=_id), strict=True
        )
    )
    assert again.manifest.counts["completions"] == {"asked": 100, "kept": 100, "left_out": {}}
    assert gen_prefs(config, work).already
    few = made(gen_prefs(config.model_copy(update={"rows": 10, "out": "few"}), work))
    assert {row.prompt_id for _, row in rows_of(few)} < {row.prompt_id for _, row in rows_of(again)}


def _id(found: tuple[str, FeedbackRow]) -> str:
    return found[1].prompt_id


def test_a_file_of_prompts_with_texts_is_enough(work: Work, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": "Add 1 and 2.", "completions": ["3", "four"], "model": "me"},
        {
            "prompt": "Add 2 and 2.",
            "completions": [{"model": "me", "text": "4"}, {"model": "you", "text": "5"}],
        },
        {"prompt": "Add 3 and 2.", "completions": ["5", " "], "model": "me"},
        {"prompt": "Add 1 and 2.", "completions": ["3", "30"], "model": "me"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    artifact = made(
        gen_prefs(GenPrefsConfig(teacher="sandbox", completions=str(path), max_failures=0.5), work)
    )
    found = [row for _, row in rows_of(artifact)]
    assert sorted([c.text for c in row.completions] for row in found) == [["3", "four"], ["4", "5"]]
    counts = artifact.manifest.counts
    assert counts["dropped"] == {"duplicate": 1, "too_few_completions": 1}
    assert counts["prompts"] == 4 == counts["kept"] + 2
    assert counts["completions"] == {"asked": 6, "kept": 5, "left_out": {"empty": 1}}


def test_what_holds_no_completions_is_refused(work: Work) -> None:
    gen_sft(GenSftConfig(teacher="sandbox", rows=5), work)
    with pytest.raises(WrongKind):
        gen_prefs(GenPrefsConfig(teacher="sandbox", completions="sft-data"), work)
    with pytest.raises(RefNotFound):
        gen_prefs(GenPrefsConfig(teacher="sandbox", completions="nothing"), work)


def test_a_function_rates_without_a_teacher_and_nothing_is_asked(work: Work, verifier: str) -> None:
    gen_prefs(GenPrefsConfig(teacher="sandbox", rows=20), work)
    # editions ask for a retest, which has no meaning for a function
    config = GenPrefsConfig(scorer=verifier, completions="feedback", out="scored", retest=0.02)
    dry = Work(work.store, Recorder(), dry_run=True)
    plan = gen_prefs(config, dry).plan
    assert plan["estimate"]["calls"] == {"likely": 0, "most": 0}
    assert "ladder" not in plan
    artifact = made(gen_prefs(config, work))
    assert (artifact.world, asked_of(artifact)) == ("sandbox", {})
    assert [i.role for i in artifact.manifest.inputs] == ["completions", "scorer"]
    for _, row in rows_of(artifact):
        assert row.judge.endswith("mine.py:words")
        for c in row.completions:
            assert c.overall == (None if "cannot" in c.text else -len(c.text.split()))
            assert c.ratings == []
    counts = artifact.manifest.counts["ratings"]
    assert counts["asked"] == 80 == counts["rated"] + sum(counts["unscored"].values())
    # a teacher that a project file names has nothing to rate, and is no part of the step
    named = config.model_copy(update={"teacher": "sandbox"})
    assert gen_prefs(named, work).already


def test_a_function_rates_what_a_pool_says(work: Work, verifier: str) -> None:
    pool = ["sandbox:pool-a", "sandbox:pool-b"]
    artifact = made(gen_prefs(GenPrefsConfig(scorer=verifier, pool=pool, rows=10), work))
    assert set(asked_of(artifact)) == set(pool)
    assert artifact.world == "sandbox"
    assert all(len(row.completions) == 2 for _, row in rows_of(artifact))


def test_without_teacher_and_scorer_it_says_what_is_missing(work: Work) -> None:
    with pytest.raises(UsageError, match="needs a teacher") as caught:
        gen_prefs(GenPrefsConfig(pool=["sandbox:pool-a", "sandbox:pool-b"]), work)
    assert "--scorer" in str(caught.value.hint)


def test_a_second_judge_is_asked_where_it_pays_and_changes_no_rating(work: Work) -> None:
    config = GenPrefsConfig(teacher="sandbox", rows=30)
    first = {row.prompt_id: row for _, row in rows_of(made(gen_prefs(config, work)))}
    second = config.model_copy(update={"second_judge": "sandbox:fair-judge", "when": "margin<1"})
    artifact = made(gen_prefs(second, work))
    asked = 0
    for _, row in rows_of(artifact):
        opinions = [o for c in row.completions for o in c.opinions]
        asked += bool(opinions)
        assert {o.judge for o in opinions} <= {"sandbox:fair-judge"}
        assert [(c.ratings, c.overall) for c in row.completions] == [
            (c.ratings, c.overall) for c in first[row.prompt_id].completions
        ]
    assert 0 < asked < 30
    assert "sandbox:fair-judge" in artifact.manifest.model_extra["audit"]["agreement"]  # type: ignore[index]


def test_the_audit_is_in_the_manifest_and_told(work: Work) -> None:
    artifact = made(gen_prefs(GenPrefsConfig(teacher="sandbox", rows=30, retest=0.3), work))
    audit = (artifact.manifest.model_extra or {})["audit"]
    assert (audit["judge"], audit["rows"]) == ("sandbox:teacher", 30)
    assert set(audit["position"]["places"]) == {"1", "2", "3", "4"}
    assert "retest" in audit["agreement"]
    assert any("a judge that picks the longer answer agrees with" in text for text in told(work))


def test_a_checkpoint_of_ones_own_answers_on_policy(work: Work) -> None:
    pytest.importorskip("torch")
    from zephyrctl.artifacts.links import link_model
    from zephyrctl.artifacts.models import model_files
    from zephyrctl.artifacts.step import Step
    from zephyrctl.training.locate import sandbox_base

    step = Step(
        work, GenSftConfig(teacher="sandbox"), name="dpo-e1", kind="model", inputs=[], world="sandbox"
    )
    with step.open() as staging:
        for file in model_files(sandbox_base()):
            staging.copy_file(file, file.name)
        staging.commit()
    link_model(work.store, "dpo-e1", work.emit)
    # the sandbox keeps its own four unless it is asked for
    plain = made(gen_prefs(GenPrefsConfig(teacher="sandbox", rows=4), work))
    assert plain.manifest.config["pool"] == [f"sandbox:pool-{x}" for x in "abcd"]
    pool = [str(work.store.ckpt / "dpo-e1"), "sandbox:pool-a"]
    config = GenPrefsConfig(
        teacher="sandbox", pool=pool, n=2, rows=4, max_tokens=8, max_failures=1.0, judge_mode="overall"
    )
    artifact = made(gen_prefs(config, work))
    assert [(i.ref, i.kind) for i in artifact.manifest.inputs if i.role == "pool"] == [("dpo-e1@v1", "model")]
    counts = artifact.manifest.counts["completions"]
    assert counts["asked"] == 16 == counts["kept"] + sum(counts["left_out"].values())
    assert artifact.world == "sandbox"


def test_rating_again_pays_for_the_judge_alone(tmp_path: Path, box: tuple[LoopbackTeacher, Project]) -> None:
    server, project = box
    work = Work(Store.open(tmp_path / "artifacts"), Recorder(), project=project, yes=True)
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Add {i} and 1."}) + "\n" for i in range(5)))
    pool = ["box:pool-a", "box:pool-b"]
    gen_prefs(GenPrefsConfig(teacher="box:one", pool=pool, prompts=[str(path)]), work)
    dry = Work(work.store, Recorder(), project=project, dry_run=True)
    config = GenPrefsConfig(teacher="box:two", completions="feedback", judge_mode="overall", out="two")
    plan = gen_prefs(config, dry).plan
    assert {part["model"] for part in plan["estimate"]["parts"]} == {"box:two"}
    billed = server.billed_calls
    artifact = made(gen_prefs(config, work))
    new = server.billed_calls - billed
    assert 0 < new <= plan["estimate"]["calls"]["most"]
    assert list(asked_of(artifact)) == ["box:two"]
    assert artifact.manifest.world == "real"
