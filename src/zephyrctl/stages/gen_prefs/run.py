"""`gen-prefs`: a pool answers prompts, a teacher rates the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zephyrctl.artifacts.adopt import open_source
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.prompts import Seed, Seeds, from_sandbox, from_source
from zephyrctl.asking.seats import Seat, check_keys, joint_world, take_seat
from zephyrctl.config import canonical, digest_of
from zephyrctl.errors import RefNotFound, StageRejected, UsageError
from zephyrctl.events import Note, Table, Warning_
from zephyrctl.judges.base import rubric_digests
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Answer, Ask, Failure
from zephyrctl.providers.caller import Caller
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.rating import Settings, Tally, TooFew, rate_chunk

if TYPE_CHECKING:
    from zephyrctl.modelspec import ModelSpec

NAME = "feedback"
SFT_DATA = "sft-data"
CHUNK = 512
SANDBOX_POOL = ["sandbox:pool-a", "sandbox:pool-b", "sandbox:pool-c", "sandbox:pool-d"]
_CUT_OFF_WARNING = 0.01


@dataclass
class _Yield:
    """What came out so far: prompts kept, rejects as stored and by reason, the tally of calls and ratings."""

    tally: Tally = field(default_factory=Tally)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    kept: int = 0

    def reject(self, row: dict[str, Any]) -> None:
        self.rejects.append(row)
        self.reasons[str(row["reason"])] += 1


def run(config: GenPrefsConfig, work: Work) -> StepResult:
    """The artifact `feedback`: each prompt with its completions, their ratings and the order in which they
    were shown.

    Raises AuthError before anything else, UsageError (no pool), RefNotFound, IntegrityError, and
    StageRejected when more than `max_failures` of the completions or of the ratings are missing.
    """
    named = list(config.pool)
    spec, *pool_specs = check_keys([config.teacher, *named])
    if not named:
        named = _default_pool(config, spec)
        pool_specs = check_keys(named)
    if len(named) < 2:
        raise UsageError("a pool of one model leaves nothing to compare", hint="give --pool at least twice")
    config = config.model_copy(update={"pool": named})
    teacher = take_seat(work.store, spec)
    seeds = _seeds(config, work, teacher)
    pool = [take_seat(work.store, s) for s in pool_specs]
    templates = rubric_digests()
    inputs = [
        seeds.input,
        *teacher.inputs("teacher"),
        *(ref for seat in pool for ref in seat.inputs("pool")),
        InputRef(role="rubrics", ref="zephyrctl", digest=digest_of(templates), kind="rubrics"),
    ]
    world = joint_world([seeds.world, teacher.world, *(seat.world for seat in pool)])
    step = Step(work, config, name=config.out or NAME, kind="feedback", inputs=inputs, world=world)
    done = step.done()
    if done is not None:
        return done
    taken = seeds.load(seed=config.seed, test_fraction=config.test_fraction)
    _show_plan(config, work, teacher, pool, seeds, taken)
    if work.dry_run:
        return StepResult(None, None, False, {})
    with step.open() as staging, Ledger.open(work.store.ledger_path, emit=work.emit) as ledger:
        caller = Caller(ledger, emit=work.emit, concurrency=config.concurrency, run_id=step.key[:16])
        out = _rate(config, caller, teacher, pool, taken, staging)
        _judge_outcome(config, work, out.tally)
        staging.write_rejects([*seeds.rejects, *out.rejects])
        staging.templates.update(templates)
        staging.teachers.extend(caller.summary())
        staging.counts.update(_counts(out, len(taken), len(seeds.rejects)))
        return step.result(staging.commit())


def _default_pool(config: GenPrefsConfig, spec: ModelSpec) -> list[str]:
    if spec.where == "sandbox":
        return list(SANDBOX_POOL)
    raise UsageError(
        f"gen-prefs needs a pool of models whose answers {config.teacher} rates",
        hint="give four: --pool MODEL --pool MODEL --pool MODEL --pool MODEL (gpt-5.6-mini, ckpt/sft-e1, …)",
    )


def _seeds(config: GenPrefsConfig, work: Work, teacher: Seat) -> Seeds:
    """The prompts asked for, else those of the newest `sft-data` of the teacher's world, else the sandbox's
    own."""
    if config.prompts is not None:
        return from_source(
            open_source(work.store, config.prompts, "prompts", on_bad_row=config.on_bad_row), config.rows
        )
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


def _show_plan(
    config: GenPrefsConfig,
    work: Work,
    teacher: Seat,
    pool: Sequence[Seat],
    seeds: Seeds,
    taken: Sequence[Seed],
) -> None:
    completions = len(taken) * len(pool)
    ratings = len(taken) * (len(config.aspects) + len(pool))
    members = ", ".join(seat.label for seat in pool)
    work.emit(Note(f"prompts: {len(taken)} from {seeds.input.ref}; pool: {members}; judge: {teacher.label}"))
    longer = sum(bool(seed.row.follow_ups) for seed in taken)
    if longer:
        work.emit(Note(f"{longer} prompts have follow-up turns; completions answer the first turn only"))
    work.emit(
        Table(
            "gen-prefs plan",
            ("prompts", "completions", "judgements", "requests"),
            ((str(len(taken)), str(completions), str(ratings), str(completions + ratings)),),
        )
    )


def _rate(
    config: GenPrefsConfig,
    caller: Caller,
    teacher: Seat,
    pool: Sequence[Seat],
    taken: Sequence[Seed],
    staging: Staging,
) -> _Yield:
    """Writes the rows, chunk by chunk of prompts, and says what was kept and dropped."""

    def ask(asks: Sequence[tuple[Seat, Ask]], task: str) -> list[Answer | Failure]:
        return caller.ask_all([(seat.provider, one) for seat, one in asks], task=task)

    out = _Yield()
    settings = _settings(config)
    fresh = list(_without_duplicates(taken, out))
    for start in range(0, len(fresh), CHUNK):
        chunk = fresh[start : start + CHUNK]
        rows = rate_chunk(chunk, pool, teacher, settings, ask, out.tally)
        for seed, row in zip(chunk, rows, strict=True):
            if isinstance(row, TooFew):
                out.reject(row.as_row())
            else:
                out.kept += staging.write_rows(seed.split, [row])
    return out


def _settings(config: GenPrefsConfig) -> Settings:
    return Settings(
        seed=config.seed,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        aspects=tuple(config.aspects),
        judge_temperature=config.judge_temperature,
        retry_temperature=config.retry_temperature,
        judge_draws=config.judge_draws,
        judge_max_tokens=config.judge_max_tokens,
    )


def _without_duplicates(taken: Sequence[Seed], out: _Yield) -> Iterator[Seed]:
    seen: set[str] = set()
    for seed in taken:
        if seed.row.prompt_id in seen:
            row = {"prompt_id": seed.row.prompt_id, "prompt": [m.model_dump() for m in seed.row.prompt]}
            detail = "an earlier row has the same prompt"
            out.reject({"where": seed.where, "reason": "duplicate", "detail": detail, "row": canonical(row)})
            continue
        seen.add(seed.row.prompt_id)
        yield seed


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
    if tally.left_out["cut_off"] > _CUT_OFF_WARNING * tally.completions_asked:
        work.emit(
            Warning_(
                f"{tally.left_out['cut_off']} of {tally.completions_asked} completions were cut off at "
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
