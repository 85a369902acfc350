"""Measure a model: ask it the prompts, grade its answers, compare with its base, commit the verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.asking.calling import Asker, site_of
from zephyrctl.asking.ending import tell_money
from zephyrctl.asking.errand import Errand
from zephyrctl.asking.seats import Closing, Seat, check_keys, take_seat
from zephyrctl.benchmarks.base import Decoding, Item
from zephyrctl.benchmarks.sandbox import LABEL, sandbox_suites
from zephyrctl.config import digest_of
from zephyrctl.errors import StageRejected
from zephyrctl.events import Note
from zephyrctl.judges.base import rubric_digests
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import AnyProvider
from zephyrctl.records import Verdict
from zephyrctl.stages.eval import summary
from zephyrctl.stages.eval.asking import Transcripts, transcripts, verdicts
from zephyrctl.stages.eval.calls import draw
from zephyrctl.stages.eval.config import EvalConfig
from zephyrctl.stages.eval.subjects import Subject, find_baseline, find_subject

_RUBRICS = ("judges/single.md", "judges/pairwise.md")


@dataclass(frozen=True)
class Contest:
    """Who is measured, against whom, by whom. `theirs` None = the model is its own baseline."""

    subject: Subject
    baseline: Subject
    judge: Seat
    ours: AnyProvider
    theirs: AnyProvider | None

    @property
    def models(self) -> list[AnyProvider]:
        """The models that answer."""
        return [self.ours] if self.theirs is None else [self.ours, self.theirs]


@dataclass(frozen=True)
class Graded:
    """The verdicts on the model and (unless they are the same) on its baseline, and answers of the model that were
    cut."""

    rows: list[Verdict]
    baseline: list[Verdict] | None
    decodings: list[str]
    cut: int


def run(config: EvalConfig, work: Work) -> StepResult:
    """The eval artifact of one model: verdicts as rows, `summary.json` beside them.

    Raises AuthError, UsageError, RefNotFound and IntegrityError before anything is asked, BudgetReached, and
    StageRejected when more than `max_failures` of the verdicts are missing.
    """
    site = site_of(config, work.project)
    (judge_spec, *_) = check_keys([config.judge], site)
    subject = find_subject(work.store, config.model)
    baseline = find_baseline(work.store, subject, config.baseline)
    templates = {name: digest for name, digest in rubric_digests().items() if name in _RUBRICS}
    rubrics = InputRef(role="rubrics", ref="judges", digest=digest_of(templates), kind="rubrics")
    judge = take_seat(work.store, judge_spec, site)
    step = Step(
        work,
        config,
        name=config.out or f"eval-{subject.short_name}",
        kind="eval",
        inputs=[subject.input("model"), baseline.input("baseline"), rubrics, *judge.inputs("judge")],
        world="sandbox",
    )
    done = step.done()
    if done is not None:
        return done
    ours = subject.provider(config.micro_batch, site)
    same = subject.digest == baseline.digest
    theirs = None if same else baseline.provider(config.micro_batch, site)
    contest = Contest(subject, baseline, judge, ours, theirs)
    items = sandbox_suites()[0].items(config.rows, config.seed)
    turns = sum(len(item.turns) for item in items)
    work.emit(
        Note(
            f"measures {subject.ref} against {baseline.ref} on {len(items)} sandbox prompts ({turns} turns), "
            f"greedy and at temperature {config.temperature:g}; {judge.label} judges; {LABEL}"
        )
    )
    with Ledger.open(work.store.ledger_path, emit=work.emit) as ledger:
        try:
            errand = _errand(config, work, step, ledger, contest, items)
            stop = errand.prepare()
            return stop or _measure(config, errand, contest, templates)
        finally:
            judge.close()


def _errand(
    config: EvalConfig, work: Work, step: Step, ledger: Ledger, contest: Contest, items: Sequence[Item]
) -> Errand[Item, Graded]:
    return Errand(
        config=config,
        work=work,
        step=step,
        ledger=ledger,
        rows=items,
        providers=[*contest.models, contest.judge.provider],
        draw=lambda sketch, rows: draw(sketch, rows, contest.models, contest.judge, config),
        through=lambda rows, asker: _grade(config, contest, rows, asker),
        teacher=contest.judge,
        role="judge",
        flag="--judge",
        unit="prompts",
    )


def _measure(
    config: EvalConfig, errand: Errand[Item, Graded], contest: Contest, templates: Mapping[str, str]
) -> StepResult:
    step, work, suites, ref = errand.step, errand.work, sandbox_suites(), contest.subject.ref
    with step.open() as staging, errand.caller() as caller:
        graded = _grade(config, contest, errand.rows, Asker(caller))
        rows = graded.rows
        _check_failures(rows, config)
        found = summary.scores(rows, graded.baseline, suites, graded.decodings)
        staging.write_rows("test", rows)
        staging.counts.update(summary.counts(rows, graded.cut))
        staging.headline.update(summary.headline(found))
        staging.teachers.extend(caller.summary())
        staging.templates.update(templates)
        document = {
            "about": LABEL,
            "model": ref,
            "baseline": contest.baseline.ref,
            "judge": contest.judge.label,
            "scores": [s.as_dict() for s in found],
            "biases": summary.biases(rows, suites),
        }
        staging.write_text("summary.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        work.emit(summary.table(found, f"{ref}, judged by {contest.judge.label} (sandbox)"))
        artifact = staging.commit()
        usable = sum(row.score is not None for row in rows)
        tell_money(work.emit, staging.teachers, usable=usable, unit="verdict")
        return step.result(artifact)


def _grade(config: EvalConfig, contest: Contest, items: Sequence[Item], asker: Asker) -> Graded:
    """The baseline's answers, the model's, and the judge's verdicts on both."""
    suites, subject, baseline = sandbox_suites(), contest.subject.ref, contest.baseline.ref
    if contest.theirs is None:
        base_answers, _ = _answers(asker, contest.ours, baseline, items, config)
        answers, cut = base_answers, 0
        base_rows = None
    else:
        base_answers, _ = _answers(asker, contest.theirs, baseline, items, config)
        answers, cut = _answers(asker, contest.ours, subject, items, config)
        alone = [suite for suite in suites if not suite.compares]
        base_rows = verdicts(asker, contest.judge, alone, base_answers, {}, config, baseline)
    rows = verdicts(asker, contest.judge, suites, answers, base_answers, config, subject)
    return Graded(rows, base_rows, list(answers), cut)


def _answers(
    asker: Asker, provider: AnyProvider, label: str, items: Sequence[Item], config: EvalConfig
) -> tuple[dict[str, Transcripts], int]:
    """One model's transcripts by decoding, and how many answers were cut. Frees the model's memory."""
    found: dict[str, Transcripts] = {}
    cut = 0
    try:
        for decoding in (Decoding("greedy", 0.0), Decoding("sampled", config.temperature)):
            found[decoding.name], cuts = transcripts(asker, provider, items, decoding, config, label)
            cut += cuts
    finally:
        if isinstance(provider, Closing):
            provider.close()
    return found, cut


def _check_failures(rows: Sequence[Verdict], config: EvalConfig) -> None:
    failed = [row for row in rows if row.score is None]
    if len(failed) > config.max_failures * len(rows):
        raise StageRejected(
            f"{len(failed)} of {len(rows)} verdicts are missing (first reason: {failed[0].reason}); "
            f"at most {config.max_failures:.0%} may be",
            hint="a higher limit costs nothing, replies are in the ledger: --set max_failures=1",
        )
