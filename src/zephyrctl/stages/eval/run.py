"""Measure a model: ask it the prompts, grade its answers, compare with its base, commit the verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.asking.seats import Seat, check_keys, take_seat
from zephyrctl.benchmarks.base import Benchmark, Decoding, Item
from zephyrctl.benchmarks.sandbox import LABEL, sandbox_suites
from zephyrctl.config import digest_of
from zephyrctl.errors import StageRejected
from zephyrctl.events import Note, Table
from zephyrctl.judges.base import rubric_digests
from zephyrctl.records import Verdict
from zephyrctl.stages.eval import summary
from zephyrctl.stages.eval.asking import Transcripts, transcripts, verdicts
from zephyrctl.stages.eval.config import EvalConfig
from zephyrctl.stages.eval.subjects import Subject, find_baseline, find_subject

if TYPE_CHECKING:
    from zephyrctl.providers.caller import Caller

_RUBRICS = ("judges/single.md", "judges/pairwise.md")


def run(config: EvalConfig, work: Work) -> StepResult:
    """The eval artifact of one model: verdicts as rows, `summary.json` beside them.

    Raises AuthError, UsageError, RefNotFound and IntegrityError before anything is asked, and StageRejected
    when more than `max_failures` of the verdicts are missing.
    """
    (judge_spec, *_) = check_keys([config.judge])
    subject = find_subject(work.store, config.model)
    baseline = find_baseline(work.store, subject, config.baseline)
    templates = {name: digest for name, digest in rubric_digests().items() if name in _RUBRICS}
    rubrics = InputRef(role="rubrics", ref="judges", digest=digest_of(templates), kind="rubrics")
    judge = take_seat(work.store, judge_spec)
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
    suites = sandbox_suites()
    items = suites[0].items(config.rows, config.seed)
    _say_plan(work, config, subject, baseline, judge, items)
    if work.dry_run:
        return StepResult(ref=None, artifact=None, already=False, sides={})
    return _measure(config, work, step, subject, baseline, judge, suites, items, templates)


def _say_plan(
    work: Work, config: EvalConfig, subject: Subject, baseline: Subject, judge: Seat, items: Sequence[Item]
) -> None:
    turns = sum(len(item.turns) for item in items)
    models = 1 if subject.digest == baseline.digest else 2
    work.emit(
        Note(
            f"measures {subject.ref} against {baseline.ref} on {len(items)} sandbox prompts ({turns} turns), "
            f"greedy and at temperature {config.temperature:g}; {judge.label} judges; {LABEL}"
        )
    )
    if work.dry_run:
        each = f"{2 * turns} per model; what the ledger holds is not asked again"
        rows = (
            ("answers", str(2 * turns * models), each),
            ("judgements of one answer", str(2 * turns * models), "1-10, every turn"),
            ("judgements of pairs", str(4 * len(items) * (models - 1)), "first turns, both orders"),
        )
        work.emit(Table("what eval would ask, at most", ("", "calls", ""), rows))


def _measure(
    config: EvalConfig,
    work: Work,
    step: Step,
    subject: Subject,
    baseline: Subject,
    judge: Seat,
    suites: Sequence[Benchmark],
    items: Sequence[Item],
    templates: Mapping[str, str],
) -> StepResult:
    from zephyrctl.ledger.ledger import Ledger
    from zephyrctl.providers.caller import Caller

    with step.open() as staging, Ledger.open(work.store.ledger_path) as ledger:
        caller = Caller(ledger, emit=work.emit, concurrency=config.concurrency, run_id=step.key[:16])
        base_answers, _ = _answers(caller, baseline, items, config)
        same = subject.digest == baseline.digest
        answers, cut = (base_answers, 0) if same else _answers(caller, subject, items, config)
        alone = [suite for suite in suites if not suite.compares]
        base_rows = None if same else verdicts(caller, judge, alone, base_answers, {}, config, baseline.ref)
        rows = verdicts(caller, judge, suites, answers, base_answers, config, subject.ref)
        _check_failures(rows, config)
        found = summary.scores(rows, base_rows, suites, list(answers))
        staging.write_rows("test", rows)
        staging.counts.update(summary.counts(rows, cut))
        staging.headline.update(summary.headline(found))
        staging.teachers.extend(caller.summary())
        staging.templates.update(templates)
        document = {
            "about": LABEL,
            "model": subject.ref,
            "baseline": baseline.ref,
            "judge": judge.label,
            "scores": [s.as_dict() for s in found],
            "biases": summary.biases(rows, suites),
        }
        staging.write_text("summary.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        work.emit(summary.table(found, f"{subject.ref}, judged by {judge.label} (sandbox)"))
        return step.result(staging.commit())


def _answers(
    caller: Caller, subject: Subject, items: Sequence[Item], config: EvalConfig
) -> tuple[dict[str, Transcripts], int]:
    """One model's transcripts by decoding, and how many answers were cut. Frees the model's memory."""
    provider = subject.provider(config.micro_batch)
    found: dict[str, Transcripts] = {}
    cut = 0
    try:
        for decoding in (Decoding("greedy", 0.0), Decoding("sampled", config.temperature)):
            found[decoding.name], cuts = transcripts(caller, provider, items, decoding, config, subject.ref)
            cut += cuts
    finally:
        close = getattr(provider, "close", None)
        if close is not None:
            close()
    return found, cut


def _check_failures(rows: Sequence[Verdict], config: EvalConfig) -> None:
    failed = [row for row in rows if row.score is None]
    if len(failed) > config.max_failures * len(rows):
        raise StageRejected(
            f"{len(failed)} of {len(rows)} verdicts are missing (first reason: {failed[0].reason}); "
            f"at most {config.max_failures:.0%} may be",
            hint="a higher limit costs nothing, replies are in the ledger: --set max_failures=1",
        )
