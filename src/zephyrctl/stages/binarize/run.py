"""`binarize`: from rated completions to preference pairs, with the best answers beside them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from zephyrctl.artifacts.adopt import Source, open_source
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.artifacts.ultrafeedback import OVERALL
from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.seats import joint_world
from zephyrctl.errors import IntegrityError, RefNotFound, StageRejected, UsageError
from zephyrctl.events import Note, Progress, Warning_
from zephyrctl.records import FeedbackRow, Record, Split
from zephyrctl.stages.binarize import columns
from zephyrctl.stages.binarize.barred import Barred, read_flagged
from zephyrctl.stages.binarize.config import BinarizeConfig
from zephyrctl.stages.binarize.rows import Rows, reject, side_of
from zephyrctl.stages.binarize.select import select
from zephyrctl.stages.binarize.tally import DELIBERATE, Funnel

NAME = "prefs"
FEEDBACK = "feedback"
Lot = columns.Batch | Rows

_TOLD_EVERY = 10_000
_ROWS_IN_LOT = 256
_SHOWN = 5


def run(config: BinarizeConfig, work: Work) -> StepResult:
    """The artifact `prefs` (one pair for each prompt, or all of them), and `prefs-best` with one best answer for each
    prompt that has pairs, as dialogues.

    Splits are those of the feedback. Raises RefNotFound, WrongKind, IntegrityError, UsageError for an aspect
    that nobody rated, and StageRejected when more than `max_dropped` of the prompts end without a pair.
    """
    source = _source(config, work)
    barred, inputs = _barred(config, work)
    name = config.out or NAME
    world = joint_world([source.world])
    step = Step(
        work, config, name=name, kind="prefs", inputs=[source.input("feedback"), *inputs], world=world
    )
    done = step.done()
    if done is not None:
        return done
    work.emit(
        Note(f"pairs by {config.score}: the best against lower ones, {config.rejected}; ties: {config.ties}")
    )
    if work.dry_run:
        funnel = _pair_all(config, source, barred, work)
        _judge_outcome(config, funnel)
        _tell(config, funnel, barred, work)
        return StepResult(None, None, False, {})
    with step.open() as staging:
        with staging.side(f"{name}-best", "sft") as best:
            funnel = _pair_all(config, source, barred, work, staging, best)
            _judge_outcome(config, funnel)
            best.counts["pairs"] = funnel.pairs
        staging.write_rejects(source.rejects)
        staging.counts.update(
            funnel.as_counts(), flagged_unknown=len(barred.unknown()), bad_rows=len(source.rejects)
        )
        staging.extra["pairs"] = funnel.as_profile()
        _tell(config, funnel, barred, work)
        return step.result(staging.commit())


def _source(config: BinarizeConfig, work: Work) -> Source:
    if config.feedback is not None:
        return open_source(work.store, config.feedback, "feedback", on_bad_row=config.on_bad_row)
    newest = work.store.newest(FEEDBACK, kind="feedback")
    if newest is None:
        raise RefNotFound(
            f"there is no {FEEDBACK} in {work.store.root} to make pairs from",
            hint="zephyrctl gen-prefs --teacher … makes it; or --feedback REF or FILE",
        )
    work.emit(Note(f"feedback: {newest.ref}, the newest (--feedback names others)"))
    return open_source(work.store, str(newest.ref), "feedback", on_bad_row=config.on_bad_row)


def _barred(config: BinarizeConfig, work: Work) -> tuple[Barred, list[InputRef]]:
    """What takes no part, and the files that say so as inputs of the step."""
    inputs: list[InputRef] = []
    questions: frozenset[str] = frozenset()
    barred = Barred()
    if config.suites:
        from zephyrctl.benchmarks.suites import load_suites

        suites = load_suites([Path(text).expanduser() for text in config.suites], work.emit)
        questions = frozenset(text for suite in suites for item in suite.items for text in item.texts)
        inputs += [InputRef(role="suite", ref=s.name, digest=s.digest, kind="suite") for s in suites]
    if config.drop is not None:
        ids, pairs, item = read_flagged(config.drop)
        barred = Barred(ids=ids, pairs=pairs)
        inputs.append(item)
    barred.sources, barred.questions = frozenset(config.drop_sources), questions
    return barred, inputs


def _pair_all(
    config: BinarizeConfig,
    source: Source,
    barred: Barred,
    work: Work,
    staging: Staging | None = None,
    best: Staging | None = None,
) -> Funnel:
    """Writes pairs, best answers and rejects as the feedback is read, so that memory does not grow with it.

    Without a staging nothing is written: the funnel alone is made.
    """
    funnel, policy, told = Funnel(), config.policy(), 0
    with ThreadPoolExecutor(max_workers=1) as pool:
        # while one lot is being written, pairs of the next one are chosen
        writing: Future[None] | None = None
        for lot in _lots(config, source):
            funnel.aspects |= lot.aspects
            rejects = []
            for number, asked in enumerate(lot.asked):
                outcome = select(asked, policy, barred)
                funnel.add(asked, outcome)
                lot.note(number, outcome)
                if outcome.best is None:
                    rejects.append(reject(lot.where(number), asked, outcome))
            if writing is not None:
                writing.result()
            if staging is not None and best is not None:
                writing = pool.submit(_write, lot, rejects, staging, best)
            if funnel.prompts - told >= _TOLD_EVERY:
                told = funnel.prompts
                work.emit(Progress("pairs", told, source.artifact.count() if source.artifact else None))
        if writing is not None:
            writing.result()
    return funnel


def _write(lot: Lot, rejects: Sequence[Mapping[str, str]], staging: Staging, best: Staging) -> None:
    staging.write_rejects(rejects)
    lot.write(staging, best)


def _lots(config: BinarizeConfig, source: Source) -> Iterator[Lot]:
    """The feedback in lots: columns of an artifact of ours, checked rows of anything else."""
    if source.artifact is not None and source.artifact.kind == "feedback":
        yield from columns.batches(source.artifact, with_ratings=config.score != OVERALL)
        return
    rows = source.rows()
    while part := list(itertools.islice(rows, _ROWS_IN_LOT)):
        yield Rows([_checked(config, *found) for found in part])


def _checked(
    config: BinarizeConfig, where: str, split: str | None, row: Record
) -> tuple[str, Split, FeedbackRow]:
    if not isinstance(row, FeedbackRow):
        raise IntegrityError(f"{where}: a {type(row).__name__} where feedback was expected")
    return where, side_of(split, row.prompt_id, config.test_fraction), row


def _tell(config: BinarizeConfig, funnel: Funnel, barred: Barred, work: Work) -> None:
    for table in funnel.tables(config.score):
        work.emit(table)
    work.emit(
        Note(f"a judge that picks the longer answer agrees with {funnel.longer_agrees():.1%} of these pairs")
    )
    if unknown := barred.unknown():
        more = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
        shown = ", ".join(unknown[:_SHOWN]) + more
        work.emit(Warning_(f"{config.drop}: no row of the feedback has these flagged ids: {shown}"))


def _judge_outcome(config: BinarizeConfig, funnel: Funnel) -> None:
    wanted = set(config.weights) | (
        {config.score.removeprefix("aspect:")} if config.score.startswith("aspect:") else set()
    )
    rated = funnel.aspects - {OVERALL}
    if unknown := sorted(wanted - rated):
        raise UsageError(
            f"nobody rated the aspect '{unknown[0]}' in this feedback",
            hint="rated are: " + (", ".join(sorted(rated)) or "none; --score overall"),
        )
    told = ", ".join(f"{n} {why}" for why, n in sorted(funnel.dropped.items())) or "none"
    if funnel.pairs == 0:
        hint = "another --score or --ties may help; artifacts show feedback tells what the judge left out"
        if not funnel.ratings and funnel.dropped["unscored"]:
            other = "mean" if config.score == OVERALL else OVERALL
            hint = f"nothing was rated that --score {config.score} looks for; try --score {other}"
        raise StageRejected(
            f"binarize: no pair could be made of {funnel.prompts} prompts ({told})", hint=hint
        )
    meant = sum(funnel.dropped[why] for why in DELIBERATE)
    rate = (funnel.dropped.total() - meant) / max(1, funnel.prompts - meant)
    if rate > config.max_dropped:
        raise StageRejected(
            f"binarize: {rate:.0%} of the prompts end without a pair, {config.max_dropped:.0%} may ({told})",
            hint=f"another --ties may help; or accept it: --set max_dropped={min(1.0, rate + 0.05):.2f}",
        )
