"""The judge audit against the sandbox's judges, whose habits are settings: what is there is found, and no more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.prompts import from_sandbox
from zephyrctl.asking.seats import Seat
from zephyrctl.events import Recorder
from zephyrctl.judges.audit import Audit
from zephyrctl.judges.audit_report import AuditReport
from zephyrctl.judges.ultrafeedback import ASPECTS
from zephyrctl.modelspec import parse_model
from zephyrctl.project import Project
from zephyrctl.providers.base import Answer, Ask, Failure
from zephyrctl.providers.registry import make_provider
from zephyrctl.providers.site import Site
from zephyrctl.records import FeedbackRow
from zephyrctl.sandbox import teacher
from zephyrctl.stages.gen_prefs.completing import Answering, Pool
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.judgements import Judging
from zephyrctl.stages.gen_prefs.judging import JudgeRater
from zephyrctl.stages.gen_prefs.orders import Order, latin_order
from zephyrctl.stages.gen_prefs.rating import rate_chunk
from zephyrctl.stages.gen_prefs.run import run
from zephyrctl.stages.gen_prefs.tally import Tally

PROMPTS = 250
POOL = ("pool-a", "pool-b", "pool-c", "pool-d")


@cache
def seat(role: str) -> Seat:
    spec = parse_model(f"sandbox:{role}")
    return Seat(spec, make_provider(spec, site=Site(Project())))


def answers(asks: Sequence[tuple[Seat, Ask]], task: str) -> list[Answer | Failure]:
    """The sandbox's replies, without ledger and caller."""
    return [
        Answer(
            teacher.reply(
                who.spec.name,
                [{"role": m.role, "content": m.content} for m in ask.messages],
                draw=ask.draw,
                seed=ask.sampling.seed or 0,
                temperature=ask.sampling.temperature,
            ),
            "text", "stop", who.label, None, "", False,
        )
        for who, ask in asks
    ]  # fmt: skip


@cache
def audited(role: str, seed: int) -> AuditReport:
    """The audit of a judge over prompts, completions and orders that all depend on the seed."""
    seeds = from_sandbox(PROMPTS, seed).load(seed=seed, test_fraction=0.1)
    pool = Pool([seat(name) for name in POOL], Answering(seed, 1.0, 1.0, 64))
    rater = JudgeRater(seat(role), Judging(seed, ASPECTS, True, 0.0, 512))
    audit = Audit(rater.label)
    for outcome in rate_chunk(seeds, pool, rater, answers, Tally()):
        if isinstance(outcome, FeedbackRow):
            audit.add(outcome)
    return audit.report()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("role", ["judge", "biased-judge"])
def test_the_habits_of_a_biased_judge_are_found(role: str, seed: int) -> None:
    body = audited(role, seed).as_dict()
    stated = teacher.ROLES[role]
    assert stated.position_effect > 0
    assert stated.length_effect > 0
    assert body["position"]["p"] < 0.01
    assert body["length"]["p"] < 0.01
    assert body["position"]["first_less_last"] == pytest.approx(stated.position_effect, abs=0.1)
    assert audited(role, seed).found() == {"position": True, "length": True}


def test_the_sign_of_the_length_effect_is_that_of_the_judges_settings() -> None:
    # `judge` likes length a little and wrapping even less; `biased-judge` likes length and nothing else
    longer, wrapped = (audited(role, 1).as_dict()["length"]["mean"] for role in ("biased-judge", "judge"))
    assert longer["test"] == wrapped["test"] == "equal_merit"
    assert longer["equal_merit"]["slope"] > 0 > wrapped["equal_merit"]["slope"]


def test_a_judge_without_habits_is_found_to_have_none_at_ten_seeds() -> None:
    alarms = [(seed, audited("fair-judge", seed).found()) for seed in range(10)]
    assert sum(found["position"] + found["length"] for _, found in alarms) <= 1, alarms


def test_under_a_latin_square_authors_are_rated_nearer_to_the_truth_than_in_a_fixed_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    early = replace(teacher.ROLES["fair-judge"], position_effect=0.3)
    monkeypatch.setattr(teacher, "ROLES", {**teacher.ROLES, "early-judge": early})
    seeds = from_sandbox(120, 7).load(seed=7, test_fraction=0.1)
    answered = Pool([seat(name) for name in POOL], Answering(7, 1.0, 1.0, 64)).answer(seeds, answers)

    def error(order: Order) -> float:
        """How far the mean ratings of the authors lie apart otherwise than in truth."""
        means = []
        for role, shown in (("early-judge", order), ("fair-judge", latin_order)):
            rater = JudgeRater(seat(role), Judging(7, ASPECTS, False, 0.0, 512), order=shown)
            rows = [row for row in rater.rate(answered, answers, Tally()) if row is not None]
            ratings = [
                [r.value for row in rows for r in row[i].ratings if r.value is not None] for i in range(4)
            ]
            means.append([fmean(values) for values in ratings])
        off = [one - real for one, real in zip(*means, strict=True)]
        return fmean(abs(value - fmean(off)) for value in off)

    assert (
        error(latin_order) < error(lambda ids, aspects, seed, name: {one: list(ids) for one in aspects}) / 2
    )


def test_an_artifact_shows_how_far_judges_agree(tmp_path: Path) -> None:
    work = Work(Store.open(tmp_path / "artifacts"), Recorder())
    config = GenPrefsConfig(
        teacher="sandbox:judge",
        rows=40,
        second_judge="sandbox:fair-judge",
        when="margin<1 or conflict",
        retest=0.5,
    )
    artifact = run(config, work).artifact
    assert artifact is not None
    rows = [row for _, _, row in artifact.rows() if isinstance(row, FeedbackRow)]
    audit = Audit(artifact.manifest.config.get("teacher", ""))
    for row in reversed(rows):
        audit.add(row)
    report = audit.report().as_dict()
    stored = dict((artifact.manifest.model_extra or {})["audit"])
    assert stored.pop("sentences") == audit.report().sentences()
    assert json.loads(json.dumps(report)) == stored
    found = report["agreement"]
    asked = [
        row
        for row in rows
        if any(o.why in ("margin", "conflict") for c in row.completions for o in c.opinions)
    ]
    assert 0 < len(asked) < len(rows)
    assert found["sandbox:fair-judge"]["rows"] == len(asked)
    assert 0 < found["retest"]["rows"] < len(rows)
    assert 0.5 < found["retest"]["aspects"]["within_one"] <= 1.0
    assert found["retest"]["aspects"]["ratings"] > 0
    assert {"sandbox:judge", "sandbox:fair-judge"} < {asked["model"] for asked in artifact.manifest.teachers}
