"""`eval` end to end: answers judged and checked, verdicts and summary committed, nothing asked twice."""

import json
from pathlib import Path

import pytest

from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import AuthError, RefNotFound, StageRejected
from zephyrctl.events import Recorder, Table
from zephyrctl.records import Verdict
from zephyrctl.sandbox import world
from zephyrctl.sandbox.teacher import ROLES
from zephyrctl.stages.eval.config import EvalConfig
from zephyrctl.stages.eval.run import run

ROWS = 40


@pytest.fixture
def told() -> Recorder:
    return Recorder()


@pytest.fixture
def work(tmp_path: Path, told: Recorder) -> Work:
    return Work(Store.open(tmp_path / "artifacts"), told)


def config(model="sandbox:pool-a", baseline="sandbox:pool-d", **more):
    return EvalConfig(model=model, baseline=baseline, **({"rows": ROWS} | more))


def verdicts(artifact):
    return [row for _, _, row in artifact.rows() if isinstance(row, Verdict)]


def summary(artifact):
    return json.loads(artifact.read_text("summary.json"))


def test_a_good_model_beats_a_bad_one_on_every_suite(work, told):
    result = run(config(), work)
    assert result.ref == "eval-pool-a@v1"
    artifact = result.artifact
    assert (artifact.kind, artifact.world) == ("eval", "sandbox")
    rows = verdicts(artifact)
    turns = sum(1 for r in rows if r.suite == "exact" and r.decoding == "greedy")
    assert len(rows) == 2 * (2 * turns + 2 * ROWS)
    scores = {s["name"]: s for s in summary(artifact)["scores"]}
    for name in ("judged[sandbox:judge] sampled", "win_rate[sandbox:judge] sampled", "exact sampled"):
        assert scores[name]["difference"]["resolved"], name
        assert scores[name]["difference"]["low"] > 0, name
        assert scores[name]["failed"] == 0
    assert abs(scores["exact greedy"]["estimate"]["value"] - (1 - ROLES["pool-a"].error_rate)) < 0.15
    assert set(artifact.manifest.headline) == {
        "judged[sandbox:judge] sampled",
        "win_rate[sandbox:judge] sampled",
        "exact sampled",
        "exact greedy",
    }
    roles = {i.role: i.ref for i in artifact.manifest.inputs}
    assert (roles["model"], roles["baseline"]) == ("sandbox:pool-a", "sandbox:pool-d")
    assert {t["model"] for t in artifact.manifest.teachers} == {
        "sandbox:pool-a",
        "sandbox:pool-d",
        "sandbox:judge",
    }
    plan, table = [event for event in told.events if isinstance(event, Table)]
    assert plan.title == "eval plan"
    assert {row[0] for row in plan.rows} == {"sandbox:pool-a", "sandbox:pool-d", "sandbox:judge", "all"}
    assert "(sandbox)" in table.title
    assert [row[0] for row in table.rows] == [n for n in scores if "turn" not in n]


def test_exact_scores_are_those_of_the_world_and_prompts_are_unseen(work):
    rows = verdicts(run(config(), work).artifact)
    first = [r for r in rows if r.suite == "exact" and r.turn == 1]
    assert all(r.score == float(world.grade([r.question], r.answer)) for r in first)
    assert all(world.is_eval([r.question]) for r in first)


def test_a_second_run_finds_it_done_and_a_second_model_reuses_the_baselines_answers(work):
    first = run(config(), work)
    again = run(config(concurrency=3, max_failures=0.5), work)
    assert (again.ref, again.already) == (first.ref, True)
    other = run(config("sandbox:pool-b"), work).artifact
    calls = {t["model"]: t for t in other.manifest.teachers}
    assert calls["sandbox:pool-d"]["calls"] == 0
    assert calls["sandbox:pool-d"]["replayed"] > 0


def test_made_again_from_the_ledger_the_verdicts_are_the_same(work):
    first = run(config(), work).artifact
    again = run(config(), Work(work.store, again=True)).artifact
    assert str(again.ref) == "eval-pool-a@v2"
    assert again.digest == first.digest
    assert sum(t["calls"] for t in again.manifest.teachers) == 0


def test_a_model_against_itself_is_neutral_and_asks_for_no_comparison(work):
    artifact = run(config("sandbox:pool-b", "sandbox:pool-b"), work).artifact
    duels = [r for r in verdicts(artifact) if r.suite == "win_rate"]
    assert {r.score for r in duels} == {0.5}
    assert {r.critique for r in duels} == {None}
    assert all(s["difference"] is None for s in summary(artifact)["scores"])


def test_settings_and_judge_make_another_step_the_pace_does_not(work):
    first = run(config(rows=5), work).artifact
    assert run(config(rows=5, micro_batch=2), work).already
    for change in ({"rows": 6}, {"judge": "sandbox:teacher"}, {"temperature": 1.0}, {"seed": 1}):
        other = run(config(**({"rows": 5} | change)), work)
        assert not other.already, change
        assert other.artifact.manifest.step_key != first.manifest.step_key
    named = {
        s["name"] for s in summary(run(config(rows=5, judge="sandbox:teacher"), work).artifact)["scores"]
    }
    assert "judged[sandbox:teacher] greedy" in named


def test_a_dry_run_plans_and_writes_nothing(tmp_path):
    recorder = Recorder()
    work = Work(Store.open(tmp_path / "artifacts"), recorder, dry_run=True)
    result = run(config(), work)
    assert (result.ref, result.artifact) == (None, None)
    assert any(isinstance(e, Table) for e in recorder.events)
    assert result.plan["estimate"]["usd"] == {"low": 0.0, "likely": 0.0, "high": 0.0}
    assert not work.store.root.exists()


def test_the_plan_counts_every_call_that_is_then_made(tmp_path):
    store = Store.open(tmp_path / "artifacts")
    planned = run(config(rows=9), Work(store, dry_run=True)).plan["estimate"]
    artifact = run(config(rows=9), Work(store)).artifact
    asked = {t["model"]: sum(t["outcomes"].values()) for t in artifact.manifest.teachers}
    for part in planned["parts"]:
        assert asked[part["model"]] <= part["calls"]["most"]
    answers = {p["model"]: p["calls"]["most"] for p in planned["parts"] if p["for"] == "answer"}
    assert answers == {m: asked[m] for m in ("sandbox:pool-a", "sandbox:pool-d")}


@pytest.mark.parametrize("setting", [{"pilot": 3}, {"shard": "1/2"}, {"accept_partial": True}])
def test_an_evaluation_is_one_piece(setting):
    with pytest.raises(ValueError, match="one piece of work"):
        config(**setting)


def test_a_judge_that_cannot_be_read_is_rejected_past_the_limit(work, monkeypatch):
    monkeypatch.setattr("zephyrctl.sandbox.teacher._judge", lambda *args: "I would rather not say.")
    with pytest.raises(StageRejected, match="verdicts are missing") as caught:
        run(config(rows=10), work)
    assert "max_failures" in caught.value.hint
    artifact = run(config(rows=10, max_failures=1.0), work).artifact
    assert artifact.manifest.counts["failed"] > 0
    scores = {s["name"]: s for s in summary(artifact)["scores"]}
    judged = scores["judged[sandbox:judge] greedy"]
    assert judged["estimate"] is None
    assert (judged["worst"], judged["best"]) == (1.0, 10.0)
    assert scores["exact greedy"]["failed"] == 0


def test_keys_are_checked_before_all_else(work):
    with pytest.raises(AuthError):
        run(config("nowhere@v7", judge="gpt-4"), work)
    with pytest.raises(RefNotFound):
        run(config("nowhere@v7"), work)


def test_the_tiny_base_model_answers_in_batches(work, tmp_path):
    artifact = run(EvalConfig(model="sandbox", rows=6, max_tokens=16), work).artifact
    assert str(artifact.ref) == "eval-base@v1"
    assert artifact.manifest.counts["prompts"] == 6
    alone = Work(Store.open(tmp_path / "elsewhere" / "artifacts"))
    one_by_one = run(EvalConfig(model="sandbox", rows=6, max_tokens=16, micro_batch=1), alone).artifact
    assert one_by_one.digest == artifact.digest
