"""gen-prefs sorts prompts out before money is spent, the same in every part; parts come together to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.shards import Shard
from zephyrctl.errors import UsageError
from zephyrctl.events import Recorder
from zephyrctl.project import Project
from zephyrctl.records import FeedbackRow
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.intake import open_intake
from zephyrctl.stages.gen_prefs.merge import merge
from zephyrctl.stages.gen_prefs.run import run as gen_prefs
from zephyrctl.stages.importing.config import ImportConfig
from zephyrctl.stages.importing.run import run as import_source
from zephyrctl.testing.teacher import LoopbackTeacher

CAPITAL = "What is the capital of the country where the river Seine meets the sea near Le Havre?"
QUESTIONS = [
    CAPITAL,
    "Name the inventor of the first practical telescope and the year in which it was shown.",
]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(Store.open(tmp_path / "artifacts"), Recorder())


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    return str(path)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """36 prompts: 30 to ask, three equal to others, two in a suite, one too much alike."""
    texts = [f"Sort these words: pear{i} apple{i} fig{i}" for i in range(30)]
    texts[4:4] = [CAPITAL, f"  {QUESTIONS[1].upper()}"]
    texts += [*texts[:2], CAPITAL]
    texts.insert(20, "I am a long prompt. " * 40)
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


def made(result: StepResult) -> Artifact:
    assert result.artifact is not None
    return result.artifact


def rows_of(artifact: Artifact) -> list[FeedbackRow]:
    return [row for _, _, row in artifact.rows() if isinstance(row, FeedbackRow)]


def extra(artifact: Artifact) -> dict[str, Any]:
    return dict(artifact.manifest.model_extra or {})


def told(work: Work) -> list[str]:
    recorder = work.emit.outside  # type: ignore[attr-defined]
    assert isinstance(recorder, Recorder)
    return recorder.texts()


def settings(prompts: str, **more: Any) -> GenPrefsConfig:
    return GenPrefsConfig.model_validate(
        {"teacher": "sandbox", "prompts": prompts, "max_failures": 1.0, "judge_mode": "overall", **more}
    )


def test_contaminated_prompts_are_never_asked(tmp_path: Path, prompts: str, suite: str) -> None:
    with LoopbackTeacher() as server:
        box = Project.model_validate({"endpoints": {"box": {"base_url": server.openai_url}}})
        work = Work(Store.open(tmp_path / "artifacts"), Recorder(), project=box)
        config = settings(prompts, teacher="box:judge", pool=["box:a", "box:b"], suites=[suite])
        artifact = made(gen_prefs(config, work))
        said = json.dumps(server.bodies)
        kept = made(gen_prefs(config.model_copy(update={"contaminated": "keep"}), work))
    assert "Sort these words" in said
    assert "river Seine" not in said
    assert "TELESCOPE" not in said
    counts = artifact.manifest.counts
    assert counts["dropped"] == {"contaminated": 2, "duplicate": 3}
    assert counts["prompts"] == 36 == counts["kept"] + 5
    record = extra(artifact)["decontamination"]
    assert (record["compared"], record["hits"], record["dropped"]) == (33, 2, 2)
    assert [i.role for i in artifact.manifest.inputs].count("suite") == 1
    rejects = [r for r in artifact.rejects() if r["reason"] == "contaminated"]
    assert all("quiz" in r["detail"] for r in rejects)
    assert kept.manifest.counts["dropped"] == {"duplicate": 3}
    assert kept.manifest.step_key != artifact.manifest.step_key


def test_the_suites_of_the_project_are_compared_with(tmp_path: Path, prompts: str, suite: str) -> None:
    folder = tmp_path / "suites"
    folder.mkdir()
    Path(suite).rename(folder / "quiz.jsonl")
    with LoopbackTeacher() as server:
        box = {"endpoints": {"box": {"base_url": server.openai_url}}, "suites": str(folder)}
        recorder = Recorder()
        work = Work(
            Store.open(tmp_path / "artifacts"), recorder, project=Project.model_validate(box), dry_run=True
        )
        plan = gen_prefs(settings(prompts, teacher="box:judge", pool=["box:a", "box:b"]), work).plan
        assert server.requests == 0
    assert plan["prompts"] == {"from": prompts, "asked": 31, "left_out": 5}
    assert any(
        "5 of them are left out before anything is asked (2 contaminated, 3 duplicate)" in t
        for t in recorder.texts()
    )


def test_the_sandbox_compares_with_named_suites_alone(
    work: Work, prompts: str, suite: str, tmp_path: Path
) -> None:
    project = Project.model_validate({"suites": str(tmp_path)})
    plain = made(gen_prefs(settings(prompts), Work(work.store, Recorder(), project=project)))
    assert "decontamination" not in extra(plain)
    named = made(gen_prefs(settings(prompts, suites=[suite]), work))
    assert extra(named)["decontamination"]["dropped"] == 2


def test_filters_drop_prompts_before_they_are_asked(work: Work, prompts: str) -> None:
    config = settings(prompts, filters=["max-tokens=150"], tokenizer="sandbox")
    artifact = made(gen_prefs(config, work))
    assert artifact.manifest.counts["dropped"] == {"duplicate": 3, "too_long": 1}
    assert extra(artifact)["filters"]["max-tokens=150"]["dropped"] == {"too_long": 1}
    roles = [i.role for i in artifact.manifest.inputs]
    assert roles.count("tokenizer") == roles.count("filter") == 1
    with pytest.raises(UsageError, match="no filter"):
        gen_prefs(settings(prompts, filters=["max-token=60"]), work)


VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {
        "filters": ["max-tokens=150"],
        "tokenizer": "sandbox",
        "principles": "ultrafeedback",
        "n": 2,
        "members": 3,
        "retest": 0.2,
        "second_judge": "sandbox:fair-judge",
        "judge_mode": "both",
    },
    "one more pool": {"pool": [f"sandbox:pool-{x}" for x in "abcd"] + ["sandbox:pool-a?temperature=0.5"]},
}


def test_what_a_mixture_gave_is_in_the_manifest_of_the_whole_and_of_its_parts(
    tmp_path: Path, prompts: str
) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"prompt": f"Spell backwards: word{i}"}) + "\n" for i in range(8)))
    config = settings("", rows=12).model_copy(update={"prompts": [f"{prompts}=0.5", str(more)]})
    one = made(gen_prefs(config, Work(Store.open(tmp_path / "one"), Recorder())))
    half, all_of_it = extra(one)["mixture"]
    assert (half["ref"], half["weight"], half["rows"]) == (prompts, 0.5, 36)
    assert half["used"] + half["not_drawn"] == 36
    assert (all_of_it["weight"], all_of_it["used"]) == (1.0, 8)
    store = Store.open(tmp_path / "cut")
    parts = [
        made(gen_prefs(config.model_copy(update={"shard": f"{i}/2"}), Work(store, Recorder())))
        for i in (1, 2)
    ]
    assert extra(made(merge(parts, Work(store, Recorder()))))["mixture"] == [half, all_of_it]


def test_imported_prompts_are_pointed_at_where_the_seeds_are_taken(work: Work, prompts: str) -> None:
    import_source(ImportConfig(source=prompts, kind="prompts"), work)
    config = GenPrefsConfig(teacher="box:judge")
    assert len(open_intake(config, work, "real").load(seed=42, test_fraction=0.1)) > 100
    assert any("--prompts prompts@v1 takes yours" in text for text in told(work))


def test_where_models_are_asked_is_said_once(
    tmp_path: Path, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"rows": 3, "when": "conflict", "may_drop": ["temperature", "top_p", "seed"]}
    with LoopbackTeacher() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody-0123456789abcdef")
        work = Work(Store.open(tmp_path / "artifacts"), Recorder(), yes=True)
        config = settings(prompts, teacher="gpt-6.1-sol", pool=["gpt-6-luna", "gpt-5.6-luna"], **more)
        gen_prefs(config, work)
    said = [text for text in told(work) if text.startswith("OPENAI_BASE_URL is set")]
    assert len(said) == len(set(said)) == 3
    assert any("--when 'conflict' is not used" in text for text in told(work))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_decide_alike_and_make_what_one_process_makes(
    variant: str, tmp_path: Path, prompts: str, suite: str
) -> None:
    config = settings(prompts, suites=[suite], **VARIANTS[variant])
    one = made(gen_prefs(config, Work(Store.open(tmp_path / "one"), Recorder())))
    store = Store.open(tmp_path / "cut")
    parts = []
    for index in (1, 2, 3):
        shard = Shard(index, 3)
        own = Store.open(store.root, ledger=shard.ledger_path(store.ledger_path))
        cut = config.model_copy(update={"shard": str(shard), "concurrency": index})
        parts.append(made(gen_prefs(cut, Work(own, Recorder()))))
    both = made(merge(parts[::-1], Work(store, Recorder())))
    assert both.digest == one.digest
    assert both.manifest.counts == one.manifest.counts
    assert both.manifest.step_key == one.manifest.step_key
    for name in ("decontamination", "filters", "audit"):
        assert extra(both).get(name) == extra(one).get(name)
    assert extra(both)["audit"]["rows"] == len(rows_of(one))
    assert list(both.rejects()) == list(one.rejects())
    assert both.manifest.templates == one.manifest.templates
