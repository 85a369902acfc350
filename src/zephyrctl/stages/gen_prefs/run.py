"""`gen-prefs`: a pool answers prompts, a teacher rates the answers."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zephyrctl.artifacts.adopt import open_source
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.mixture import open_mixture
from zephyrctl.artifacts.parts import part_file
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.asking.calling import Asker, empty_part, mine, name_of, site_of
from zephyrctl.asking.ending import close_partial, tell_money
from zephyrctl.asking.errand import Errand, Training
from zephyrctl.asking.estimate import Fewer
from zephyrctl.asking.prompts import Seed, Seeds, from_sandbox, from_source
from zephyrctl.asking.seats import Seat, check_keys, joint_world, take_seat
from zephyrctl.config import digest_of
from zephyrctl.errors import RefNotFound, StageRejected, UsageError
from zephyrctl.events import Note, Warning_
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import UNPAID, Answer, AnyProvider, Ask, Failure
from zephyrctl.records import FeedbackRow
from zephyrctl.stages.gen_prefs.answered import Outcome, reject
from zephyrctl.stages.gen_prefs.calls import draw
from zephyrctl.stages.gen_prefs.completing import Answering
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.judging import JudgeRater, Judging
from zephyrctl.stages.gen_prefs.rating import rate_chunk
from zephyrctl.stages.gen_prefs.tally import Tally

if TYPE_CHECKING:
    from zephyrctl.modelspec import ModelSpec
    from zephyrctl.providers.calling.caller import Caller
    from zephyrctl.providers.site import Site

Rated = tuple[list[Outcome], Tally]
"""What becomes of a chunk of prompts, and the counts of its calls and ratings."""

NAME = "feedback"
SFT_DATA = "sft-data"
SANDBOX_POOL = ["sandbox:pool-a", "sandbox:pool-b", "sandbox:pool-c", "sandbox:pool-d"]
_CUT_OFF_WARNING = 0.01


@dataclass(frozen=True)
class Duplicate:
    """A prompt that an earlier row has too."""

    item: Seed

    def as_row(self) -> dict[str, str]:
        """The reject as the store keeps it."""
        return reject(self.item, "duplicate", "an earlier row has the same prompt")


@dataclass
class _Yield:
    """What came out so far: prompts kept, rejects as stored and by reason, the tally of calls and ratings."""

    tally: Tally = field(default_factory=Tally)
    rejects: list[dict[str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    kept: int = 0

    def reject(self, row: dict[str, str]) -> None:
        self.rejects.append(row)
        self.reasons[row["reason"]] += 1


@dataclass(frozen=True)
class Prompts:
    """The prompts of this process: those to ask, those that are there twice, how many there are in all shards, and
    the bad rows of the input."""

    fresh: list[Seed]
    duplicates: list[Seed]
    whole: int
    bad_rows: list[dict[str, Any]]

    @property
    def taken(self) -> int:
        """Prompts of this process, duplicates too."""
        return len(self.fresh) + len(self.duplicates)


def run(config: GenPrefsConfig, work: Work) -> StepResult:
    """The artifact `feedback`: each prompt with its completions, their ratings and the order in which they
    were shown.

    Raises AuthError before anything else, UsageError (no pool, no consent), RefNotFound, IntegrityError,
    BudgetReached, and StageRejected when more than `max_failures` of the completions or of the ratings are missing.
    """
    site = site_of(config, work.project)
    spec, pool_specs, config = _models(config, site)
    teacher = take_seat(work.store, spec, site)
    seeds = _seeds(config, work, teacher)
    pool = [take_seat(work.store, s, site) for s in pool_specs]
    rater = JudgeRater(teacher, _judging(config))
    templates = rater.templates()
    inputs = [
        *seeds.inputs,
        *rater.inputs(),
        *(ref for seat in pool for ref in seat.inputs("pool")),
        InputRef(role="rubrics", ref="zephyrctl", digest=digest_of(templates), kind="rubrics"),
    ]
    world = joint_world([seeds.world, teacher.world, *(seat.world for seat in pool)])
    step = Step(work, config, name=name_of(config, NAME), kind="feedback", inputs=inputs, world=world)
    done = step.done()
    if done is not None:
        return done
    prompts = _sorted_out(config, seeds)
    nothing = empty_part(config, prompts.whole, prompts.taken, work.emit)
    if nothing is not None:
        return nothing
    _say_plan(work, teacher, pool, seeds, prompts)
    with Ledger.open(work.store.ledger_path, emit=work.emit) as ledger:
        try:
            errand = _errand(config, work, step, ledger, rater, pool, prompts.fresh)
            stop = errand.prepare()
            return stop or _make(config, errand, prompts, templates)
        finally:
            rater.close()
            for seat in pool:
                seat.close()


def _models(config: GenPrefsConfig, site: Site) -> tuple[ModelSpec, list[ModelSpec], GenPrefsConfig]:
    """The judge, the pool, and the settings with the pool's names filled in."""
    named = list(config.pool)
    if config.teacher is None:
        raise UsageError("gen-prefs needs a teacher to rate the completions", hint="--teacher MODEL")
    spec, *pool_specs = check_keys([config.teacher, *named], site)
    if not named:
        named = _default_pool(config, spec)
        pool_specs = check_keys(named, site)
    if len(named) < 2:
        raise UsageError("a pool of one model leaves nothing to compare", hint="give --pool at least twice")
    return spec, pool_specs, config.model_copy(update={"pool": named})


def _default_pool(config: GenPrefsConfig, spec: ModelSpec) -> list[str]:
    if spec.where == "sandbox":
        return list(SANDBOX_POOL)
    raise UsageError(
        f"gen-prefs needs a pool of models whose answers {config.teacher} rates",
        hint="give four: --pool MODEL --pool MODEL --pool MODEL --pool MODEL (gpt-6-luna, ckpt/sft-e1, …)",
    )


def _seeds(config: GenPrefsConfig, work: Work, teacher: Seat) -> Seeds:
    """The prompts asked for, else those of the newest `sft-data` of the teacher's world, else the sandbox's
    own."""
    if config.prompts:
        source = open_mixture(
            work.store, config.prompts, "prompts", seed=config.seed, on_bad_row=config.on_bad_row
        )
        return from_source(source, config.rows)
    newest = work.store.newest(SFT_DATA, world=teacher.world, kind="sft")
    if newest is not None:
        work.emit(Note(f"prompts: those of {newest.ref}, the newest {SFT_DATA} (--prompts names others)"))
        source = open_source(work.store, str(newest.ref), "prompts", on_bad_row=config.on_bad_row)
        return from_source(source, config.rows)
    if teacher.spec.where == "sandbox":
        return from_sandbox(config.rows, config.seed)
    raise RefNotFound(
        f"there is no {SFT_DATA} of the {teacher.world} world in {work.store.root} to take prompts from",
        hint=f"zephyrctl gen-sft --teacher {config.teacher} makes it; or --prompts FILE",
    )


def _sorted_out(config: GenPrefsConfig, seeds: Seeds) -> Prompts:
    whole = seeds.load(seed=config.seed, test_fraction=config.test_fraction)
    seen: set[str] = set()
    prompts = Prompts([], [], len(whole), seeds.rejects)
    for seed in mine(config, whole):
        (prompts.duplicates if seed.row.prompt_id in seen else prompts.fresh).append(seed)
        seen.add(seed.row.prompt_id)
    return prompts


def _say_plan(work: Work, teacher: Seat, pool: Sequence[Seat], seeds: Seeds, prompts: Prompts) -> None:
    members = ", ".join(seat.label for seat in pool)
    work.emit(Note(f"prompts: {prompts.taken} from {seeds.named}; pool: {members}; judge: {teacher.label}"))
    longer = sum(bool(seed.row.follow_ups) for seed in prompts.fresh)
    if longer:
        work.emit(Note(f"{longer} prompts have follow-up turns; completions answer the first turn only"))


def _errand(
    config: GenPrefsConfig,
    work: Work,
    step: Step,
    ledger: Ledger,
    rater: JudgeRater,
    pool: Sequence[Seat],
    fresh: Sequence[Seed],
) -> Errand[Seed, Rated]:
    settings = _answering(config)

    def through(chunk: Sequence[Seed], asker: Asker) -> Rated:
        def ask(asks: Sequence[tuple[Seat, Ask]], task: str) -> list[Answer | Failure]:
            return asker([(seat.provider, one) for seat, one in asks], task)

        tally = Tally()
        return rate_chunk(chunk, pool, rater, settings, ask, tally), tally

    fewer = (
        Fewer("the overall score alone", "--judge-mode overall", frozenset({"aspect"})),
        Fewer("the aspects alone", "--judge-mode aspects", frozenset({"overall"})),
    )
    both = bool(config.aspects) and config.judge_mode == "both"
    return Errand(
        config=config,
        work=work,
        step=step,
        ledger=ledger,
        rows=fresh,
        providers=_distinct([*rater.providers(), *(seat.provider for seat in pool)]),
        draw=lambda sketch, rows: draw(sketch, rows, pool, rater, settings),
        through=through,
        teacher=rater.teacher,
        role="judge",
        unit="prompts",
        fewer=fewer if both else (),
        training=Training(
            "dpo", rows=lambda prompts: prompts * (1 - config.test_fraction), tokens=lambda estimate: 0.0
        ),
    )


def _make(
    config: GenPrefsConfig, errand: Errand[Seed, Rated], prompts: Prompts, templates: dict[str, str]
) -> StepResult:
    """Writes the rows, chunk by chunk of prompts, and commits them."""
    step, work, taken = errand.step, errand.work, prompts.taken
    bad = len(prompts.bad_rows)
    out = _Yield()
    with step.open() as staging, errand.caller() as caller:
        with part_file(staging, config.shard, whole=prompts.whole, mine=taken, bad_rows=bad) as notes:
            rated = _rated(errand, caller, out.tally)
            twice = ((seed, Duplicate(seed)) for seed in prompts.duplicates)
            for seed, row in heapq.merge(rated, twice, key=lambda found: found[0].position):
                kept = isinstance(row, FeedbackRow)
                if isinstance(row, FeedbackRow):
                    out.kept += staging.write_rows(seed.split, [row])
                else:
                    out.reject(row.as_row())
                if notes is not None:
                    notes.add(seed.position, **({"kept": seed.split} if kept else {}))
        if config.accept_partial:
            finished = taken - out.reasons[UNPAID]
            close_partial(staging, work.emit, finished=finished, of=taken, kept=out.kept, unit="prompts")
        _judge_outcome(config, work, out.tally)
        staging.write_rejects([*prompts.bad_rows, *out.rejects])
        staging.templates.update(templates)
        staging.teachers.extend(caller.summary())
        staging.counts.update(_counts(out, taken, bad))
        artifact = staging.commit()
        tell_money(work.emit, staging.teachers, usable=out.kept, unit="prompt")
        return step.result(artifact)


def _rated(
    errand: Errand[Seed, Rated], caller: Caller, tally: Tally
) -> Iterator[tuple[Seed, Outcome | Duplicate]]:
    """What becomes of each prompt, in order; counts go into `tally`."""
    for chunk, (outcomes, counted) in errand.results(caller):
        tally.add(counted)
        yield from zip(chunk, outcomes, strict=True)


def _distinct(providers: Sequence[AnyProvider]) -> list[AnyProvider]:
    return list({id(provider): provider for provider in providers}.values())


def _answering(config: GenPrefsConfig) -> Answering:
    return Answering(
        seed=config.seed,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
    )


def _judging(config: GenPrefsConfig) -> Judging:
    return Judging(
        seed=config.seed,
        aspects=tuple(config.aspects) if config.judge_mode != "overall" else (),
        overall=config.judge_mode != "aspects",
        judge_temperature=config.judge_temperature,
        retry_temperature=config.retry_temperature,
        judge_draws=config.judge_draws,
        judge_max_tokens=config.judge_max_tokens,
    )


def _judge_outcome(config: GenPrefsConfig, work: Work, tally: Tally) -> None:
    lost = tally.left_out.total()
    missing = tally.unscored.total()
    lost_rate = lost / max(1, tally.completions_asked)
    missing_rate = missing / max(1, tally.ratings_asked)
    worst = max(lost_rate, missing_rate)
    told = f"{lost} of {tally.completions_asked} completions left out {_told(tally.left_out)}"
    rated = f"{missing} of {tally.ratings_asked} ratings missing {_told(tally.unscored)}"
    if worst > config.max_failures:
        raise StageRejected(
            f"gen-prefs: more than the {config.max_failures:.0%} allowed failed: {told}; {rated}",
            hint=f"--set max_failures={min(1.0, worst + 0.05):.2f} accepts it; what was paid is kept",
        )
    cut = tally.left_out["cut_off"] + tally.left_out["reasoning_cut"]
    if cut > _CUT_OFF_WARNING * tally.completions_asked:
        work.emit(
            Warning_(
                f"{cut} of {tally.completions_asked} completions were cut off at "
                f"max_tokens={config.max_tokens} and left out; --set max_tokens=… asks for longer ones"
            )
        )
    work.emit(Note(f"{told}; {rated}; {tally.not_applicable} not applicable"))


def _told(reasons: Counter[str]) -> str:
    return "(" + (", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items())) or "none") + ")"


def _counts(out: _Yield, prompts: int, bad_rows: int) -> dict[str, Any]:
    """For the manifest: prompts = kept + dropped; completions and ratings add up as `Tally` says."""
    tally = out.tally
    return {
        "prompts": prompts,
        "kept": out.kept,
        "dropped": dict(sorted(out.reasons.items())),
        "bad_rows": bad_rows,
        "completions": {
            "asked": tally.completions_asked,
            "kept": tally.completions_kept,
            "left_out": dict(sorted(tally.left_out.items())),
        },
        "ratings": {
            "asked": tally.ratings_asked,
            "rated": tally.rated,
            "not_applicable": tally.not_applicable,
            "unscored": dict(sorted(tally.unscored.items())),
        },
        "judge_requests": tally.judge_calls,
        "judge_requests_asked_again": tally.asked_again,
    }
