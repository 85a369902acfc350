"""`gen-sft`: from seed prompts and a teacher to dialogues worth imitating."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zephyrctl.artifacts.adopt import open_source
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.parts import part_file
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.asking.calling import Asker, empty_part, mine, name_of, site_of
from zephyrctl.asking.ending import close_partial, tell_money
from zephyrctl.asking.errand import Errand, Training
from zephyrctl.asking.prompts import Seed, Seeds, from_sandbox, from_source
from zephyrctl.asking.seats import Seat, check_keys, joint_world, take_seat
from zephyrctl.config import digest_of
from zephyrctl.errors import StageRejected, UsageError
from zephyrctl.events import Note, Warning_
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import UNPAID, Answer, Ask, Failure, Sampling
from zephyrctl.records import prompt_id, row_seed
from zephyrctl.stages.gen_sft.calls import draw
from zephyrctl.stages.gen_sft.chains import Chain, Dialogue, Sieve, grow, template_digests
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.merge import as_entry

if TYPE_CHECKING:
    from zephyrctl.modelspec import ModelSpec

NAME = "sft-data"
_CUT_OFF_WARNING = 0.01


def run(config: GenSftConfig, work: Work) -> StepResult:
    """The artifact `sft-data` (kind sft): the teacher's dialogues with seeds and with instructions refined
    from them.

    Raises AuthError, UsageError (no prompts, no consent), RefNotFound, IntegrityError, BudgetReached, and
    StageRejected when more than `max_failures` of the pairs failed.
    """
    site = site_of(config, work.project)
    spec = check_keys([config.teacher], site)[0]
    seeds = _seeds(config, work, spec)
    teacher = take_seat(work.store, spec, site)
    templates = template_digests()
    inputs = [
        seeds.input,
        *teacher.inputs("teacher"),
        InputRef(role="templates", ref="zephyrctl", digest=digest_of(templates), kind="templates"),
    ]
    world = joint_world([teacher.world, seeds.world])
    step = Step(work, config, name=name_of(config, NAME), kind="sft", inputs=inputs, world=world)
    done = step.done()
    if done is not None:
        return done
    whole = seeds.load(seed=config.seed, test_fraction=config.test_fraction)
    taken = mine(config, whole)
    nothing = empty_part(config, len(whole), len(taken), work.emit)
    if nothing is not None:
        return nothing
    work.emit(Note(f"seed prompts: {len(taken)} from {seeds.input.ref}; teacher: {teacher.label}"))
    with Ledger.open(work.store.ledger_path, emit=work.emit) as ledger:
        try:
            errand = _errand(config, work, step, ledger, teacher, taken)
            stop = errand.prepare()
            return stop or _make(config, errand, seeds, len(whole), templates)
        finally:
            teacher.close()


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


def _errand(
    config: GenSftConfig, work: Work, step: Step, ledger: Ledger, teacher: Seat, taken: Sequence[Seed]
) -> Errand[Seed, list[Chain]]:
    def through(chunk: Sequence[Seed], asker: Asker) -> list[Chain]:
        def ask(dialogues: Sequence[Dialogue], purpose: str, task: str) -> list[Answer | Failure]:
            asks = [_ask(config, teacher, said, purpose) for said in dialogues]
            return asker([(teacher.provider, one) for one in asks], task)

        return grow(chunk, config.rounds, ask)

    training = Training(
        "sft",
        rows=lambda seeds: seeds * (config.rounds + 1) * (1 - config.test_fraction),
        tokens=lambda estimate: sum(part.prompt.likely + part.reply.likely for part in estimate.parts[:1]),
    )
    return Errand(
        config=config,
        work=work,
        step=step,
        ledger=ledger,
        rows=taken,
        providers=[teacher.provider],
        draw=lambda sketch, rows: draw(sketch, rows, teacher, config.rounds, _sampling(config, teacher, 0)),
        through=through,
        teacher=teacher,
        unit="seeds",
        training=training,
    )


def _make(
    config: GenSftConfig,
    errand: Errand[Seed, list[Chain]],
    seeds: Seeds,
    whole: int,
    templates: dict[str, str],
) -> StepResult:
    """Writes the rows, chunk by chunk of chains, and commits them. `whole` = prompts of all shards."""
    step, work, teacher = errand.step, errand.work, errand.teacher.label
    taken, bad = len(errand.rows), len(seeds.rejects)
    sieve = Sieve(config.rounds, teacher)
    with step.open() as staging, errand.caller() as caller:
        with part_file(staging, config.shard, whole=whole, mine=taken, bad_rows=bad, about=teacher) as notes:
            for _, chains in errand.results(caller):
                for chain in chains:
                    staging.write_rows(chain.seed.split, sieve.rows(chain))
                    if notes is not None:
                        notes.add(chain.seed.position, **as_entry(chain))
        if config.accept_partial:
            of, unfinished = sieve.possible, sieve.unfinished
            close_partial(staging, work.emit, finished=of - unfinished, of=of, kept=sieve.kept, unit="pairs")
        _judge_outcome(config, work, sieve)
        staging.write_rejects([*seeds.rejects, *(reject.as_row() for reject in sieve.rejects)])
        staging.templates.update(templates)
        staging.teachers.extend(caller.summary())
        staging.counts.update(sieve.counts(bad))
        artifact = staging.commit()
        tell_money(work.emit, staging.teachers, usable=sieve.kept, unit="pair")
        return step.result(artifact)


def _sampling(config: GenSftConfig, teacher: Seat, seed: int) -> Sampling:
    return teacher.sampling(
        temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens, seed=seed
    )


def _ask(config: GenSftConfig, teacher: Seat, said: Dialogue, purpose: str) -> Ask:
    # seeded by its own text: an equal request is an equal request, wherever it stands
    sampling = _sampling(config, teacher, row_seed(config.seed, prompt_id(said)))
    return Ask(said, sampling, purpose=purpose)


def _judge_outcome(config: GenSftConfig, work: Work, sieve: Sieve) -> None:
    dropped = sieve.dropped()
    rate = sieve.failure_rate()
    told = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items())) or "none"
    if rate > config.max_failures:
        raise StageRejected(
            f"gen-sft: {rate:.0%} of the pairs failed, {config.max_failures:.0%} are allowed ({told})",
            hint=f"--set max_failures={min(1.0, rate + 0.05):.2f} accepts it; what was paid is kept",
        )
    tried = sieve.kept + len(sieve.rejects) - dropped[UNPAID]
    cut = dropped["cut_off"] + dropped["reasoning_cut"]
    if cut > _CUT_OFF_WARNING * tried:
        reasoning = f" ({dropped['reasoning_cut']} while still reasoning)" if dropped["reasoning_cut"] else ""
        work.emit(
            Warning_(
                f"{cut} of {tried} replies were cut off at max_tokens={config.max_tokens}{reasoning} "
                "and dropped; --set max_tokens=… asks for longer ones"
            )
        )
    work.emit(Note(f"kept {sieve.kept} pairs; dropped: {told}; not reached: {sieve.not_reached()}"))
