"""`gen-sft`: from seed prompts and a teacher to dialogues worth imitating."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zephyrctl.artifacts.adopt import open_source
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.prompts import Seed, Seeds, from_sandbox, from_source
from zephyrctl.asking.seats import Seat, check_keys, joint_world, take_seat
from zephyrctl.config import digest_of
from zephyrctl.errors import StageRejected, UsageError
from zephyrctl.events import Note, Table, Warning_
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Answer, Ask, Failure
from zephyrctl.providers.caller import Caller
from zephyrctl.records import prompt_id, row_seed
from zephyrctl.stages.gen_sft.chains import (
    Dialogue,
    Sieve,
    grow,
    template_digests,
)
from zephyrctl.stages.gen_sft.config import GenSftConfig

if TYPE_CHECKING:
    from zephyrctl.modelspec import ModelSpec

NAME = "sft-data"
CHUNK = 512
_CUT_OFF_WARNING = 0.01


def run(config: GenSftConfig, work: Work) -> StepResult:
    """The artifact `sft-data` (kind sft): the teacher's dialogues with seeds and with instructions refined
    from them.

    Raises AuthError, UsageError (no prompts), RefNotFound, IntegrityError, and StageRejected when more than
    `max_failures` of the pairs failed.
    """
    spec = check_keys([config.teacher])[0]
    seeds = _seeds(config, work, spec)
    teacher = take_seat(work.store, spec)
    templates = template_digests()
    inputs = [
        seeds.input,
        *teacher.inputs("teacher"),
        InputRef(role="templates", ref="zephyrctl", digest=digest_of(templates), kind="templates"),
    ]
    world = joint_world([teacher.world, seeds.world])
    step = Step(work, config, name=config.out or NAME, kind="sft", inputs=inputs, world=world)
    done = step.done()
    if done is not None:
        return done
    taken = seeds.load(seed=config.seed, test_fraction=config.test_fraction)
    _show_plan(config, work, teacher, seeds, taken)
    if work.dry_run:
        return StepResult(None, None, False, {})
    with step.open() as staging, Ledger.open(work.store.ledger_path, emit=work.emit) as ledger:
        caller = Caller(ledger, emit=work.emit, concurrency=config.concurrency, run_id=step.key[:16])
        sieve = _grow(config, caller, teacher, taken, staging)
        _judge_outcome(config, work, sieve)
        staging.write_rejects([*seeds.rejects, *(reject.as_row() for reject in sieve.rejects)])
        staging.templates.update(templates)
        staging.teachers.extend(caller.summary())
        staging.counts.update(_counts(sieve, len(seeds.rejects)))
        return step.result(staging.commit())


def _seeds(config: GenSftConfig, work: Work, spec: ModelSpec) -> Seeds:
    if config.prompts is not None:
        return from_source(
            open_source(work.store, config.prompts, "prompts", on_bad_row=config.on_bad_row), config.rows
        )
    if spec.where == "sandbox":
        return from_sandbox(config.rows, config.seed)
    raise UsageError(
        f"gen-sft needs seed prompts for the teacher {config.teacher}",
        hint="--prompts FILE (JSONL rows with a `prompt`, or a .txt with one per line), --prompts REF, or -",
    )


def _show_plan(config: GenSftConfig, work: Work, teacher: Seat, seeds: Seeds, taken: Sequence[Seed]) -> None:
    turns = sum(1 + len(seed.row.follow_ups) for seed in taken)
    pairs = len(taken) * (config.rounds + 1)
    requests = turns + 2 * config.rounds * len(taken)
    work.emit(Note(f"seed prompts: {len(taken)} from {seeds.input.ref}; teacher: {teacher.label}"))
    work.emit(
        Table(
            "gen-sft plan",
            ("seeds", "refinements each", "pairs at most", "requests at most"),
            ((str(len(taken)), str(config.rounds), str(pairs), str(requests)),),
        )
    )


def _grow(
    config: GenSftConfig, caller: Caller, teacher: Seat, taken: Sequence[Seed], staging: Staging
) -> Sieve:
    """Writes the rows, chunk by chunk of chains, and says what was kept and dropped."""

    def ask(dialogues: Sequence[Dialogue], task: str) -> list[Answer | Failure]:
        return caller.ask(teacher.provider, [_ask(config, teacher, said) for said in dialogues], task=task)

    sieve = Sieve(config.rounds, teacher.label)
    for start in range(0, len(taken), CHUNK):
        for chain in grow(taken[start : start + CHUNK], config.rounds, ask):
            staging.write_rows(chain.seed.split, sieve.rows(chain))
    return sieve


def _ask(config: GenSftConfig, teacher: Seat, said: Dialogue) -> Ask:
    # seeded by its own text: an equal request is an equal request, wherever it stands
    sampling = teacher.sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        seed=row_seed(config.seed, prompt_id(said)),
    )
    return Ask(said, sampling)


def _judge_outcome(config: GenSftConfig, work: Work, sieve: Sieve) -> None:
    dropped = sieve.dropped()
    rate = sieve.failure_rate()
    told = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items())) or "none"
    if rate > config.max_failures:
        raise StageRejected(
            f"gen-sft: {rate:.0%} of the pairs failed, {config.max_failures:.0%} are allowed ({told})",
            hint=f"--set max_failures={min(1.0, rate + 0.05):.2f} accepts it; what was paid is kept",
        )
    tried = sieve.kept + len(sieve.rejects)
    if dropped["cut_off"] > _CUT_OFF_WARNING * tried:
        work.emit(
            Warning_(
                f"{dropped['cut_off']} of {tried} replies were cut off at max_tokens={config.max_tokens} "
                "and dropped; --set max_tokens=… asks for longer ones"
            )
        )
    work.emit(Note(f"kept {sieve.kept} pairs; dropped: {told}; not reached: {sieve.not_reached()}"))


def _counts(sieve: Sieve, bad_rows: int) -> dict[str, Any]:
    """For the manifest: seeds x (rounds + 1) = kept + dropped + not reached."""
    return {
        "seeds": sieve.seeds,
        "kept": sieve.kept,
        "dropped": dict(sorted(sieve.dropped().items())),
        "not_reached": sieve.not_reached(),
        "bad_rows": bad_rows,
    }
