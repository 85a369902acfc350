"""`gen-prefs`: a pool answers prompts, a teacher rates the answers."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import replace

from zephyrctl.artifacts.parts import part_file
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.asking.calling import empty_part, name_of, site_of
from zephyrctl.asking.ending import close_partial, tell_money
from zephyrctl.asking.errand import Errand
from zephyrctl.asking.prompts import Seed
from zephyrctl.judges.audit import Audit
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import UNPAID
from zephyrctl.providers.calling.caller import Caller
from zephyrctl.records import FeedbackRow
from zephyrctl.stages.gen_prefs import plan
from zephyrctl.stages.gen_prefs.answered import LeftOut, Outcome
from zephyrctl.stages.gen_prefs.casting import Cast, open_cast
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.intake import MIXTURE, Prompts, Screen, open_screen, sorted_out
from zephyrctl.stages.gen_prefs.outcome import Yield, judge_outcome, tell_audit
from zephyrctl.stages.gen_prefs.tally import Tally

NAME = "feedback"


def run(config: GenPrefsConfig, work: Work) -> StepResult:
    """The artifact `feedback`: each prompt with its completions, their ratings and the order in which they
    were shown.

    Raises AuthError before anything else, UsageError (no pool, no consent), RefNotFound, IntegrityError,
    BudgetReached, and StageRejected when more than `max_failures` of the completions or of the ratings are missing.
    """
    site = site_of(config, work.project)
    cast = open_cast(config, work, site)
    try:
        return _run(cast, work)
    finally:
        cast.close()


def _run(cast: Cast, work: Work) -> StepResult:
    config = cast.config
    screen = open_screen(config, work, cast.world)
    inputs = [*cast.inputs(), *screen.inputs()]
    step = Step(work, config, name=name_of(config, NAME), kind="feedback", inputs=inputs, world=cast.world)
    done = step.done()
    if done is not None:
        return done
    prompts = sorted_out(config, cast.intake, screen)
    nothing = empty_part(config, prompts.whole, prompts.taken, work.emit)
    if nothing is not None:
        return nothing
    plan.say(work, cast, prompts)
    with Ledger.open(work.store.ledger_path, emit=work.emit) as ledger:
        plan.say_modes(work, cast, ledger, prompts.fresh)
        errand = plan.errand_of(cast, work, step, ledger, prompts.fresh)
        stop = errand.prepare()
        if stop is not None:
            return replace(stop, plan={**plan.document(cast, prompts), **stop.plan})
        return _make(cast, screen, errand, prompts)


def _make(cast: Cast, screen: Screen, errand: Errand[Seed, plan.Rated], prompts: Prompts) -> StepResult:
    """Writes the rows, chunk by chunk of prompts, and commits them."""
    config, step, work = cast.config, errand.step, errand.work
    taken, bad = prompts.taken, len(prompts.bad_rows)
    out, audit = Yield(), Audit(cast.rater.label)
    with step.open() as staging, errand.caller() as caller:
        with part_file(staging, config.shard, whole=prompts.whole, mine=taken, bad_rows=bad) as notes:
            rated = _rated(errand, caller, out.tally)
            aside = ((one.item, one) for one in prompts.left_out)
            for seed, row in heapq.merge(rated, aside, key=lambda found: found[0].position):
                kept = isinstance(row, FeedbackRow)
                if isinstance(row, FeedbackRow):
                    out.kept += staging.write_rows(seed.split, [row])
                    audit.add(row)
                else:
                    out.reject(row.as_row())
                if notes is not None:
                    notes.add(seed.position, **({"kept": seed.split} if kept else {}))
        if config.accept_partial:
            finished = taken - out.reasons[UNPAID]
            close_partial(staging, work.emit, finished=finished, of=taken, kept=out.kept, unit="prompts")
        judge_outcome(config, work, out.tally)
        staging.write_rejects([*prompts.bad_rows, *out.rejects])
        staging.templates.update(cast.rater.templates())
        staging.teachers.extend(caller.summary())
        staging.counts.update(out.counts(taken, bad))
        screen.record(staging)
        if prompts.shares:
            staging.extra[MIXTURE] = prompts.shares
        tell_audit(work, audit, staging)
        artifact = staging.commit()
        tell_money(work.emit, staging.teachers, usable=out.kept, unit="prompt")
        return step.result(artifact)


def _rated(
    errand: Errand[Seed, plan.Rated], caller: Caller, tally: Tally
) -> Iterator[tuple[Seed, Outcome | LeftOut]]:
    """What becomes of each prompt that is asked, in order; counts go into `tally`."""
    for chunk, (outcomes, counted) in errand.results(caller):
        tally.add(counted)
        yield from zip(chunk, outcomes, strict=True)
