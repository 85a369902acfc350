"""The method `zephyr`: respond to a seed, refine the instruction from the response, respond again."""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.artifacts.mixture import open_mixture
from zephyrctl.artifacts.parts import part_file
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.asking.calling import Asker, empty_part, mine
from zephyrctl.asking.ending import close_partial, tell_money
from zephyrctl.asking.errand import Errand, Training
from zephyrctl.asking.prompts import Seed, Seeds, from_sandbox, from_source
from zephyrctl.errors import UsageError
from zephyrctl.events import Note
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.base import Answer, Failure
from zephyrctl.stages.gen_sft.calls import draw
from zephyrctl.stages.gen_sft.chains import Chain, Dialogue, Sieve, grow, template_digests
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.frame import Frame, judge_outcome, open_frame, tried_of
from zephyrctl.stages.gen_sft.merge import as_entry


def run(config: GenSftConfig, work: Work) -> StepResult:
    """The artifact `sft-data`: the teacher's dialogues with seeds and with instructions refined from them."""
    seeds = seeds_of(config, work)
    frame = open_frame(config, work, inputs=seeds.inputs, world=seeds.world, templates=template_digests())
    done = frame.step.done()
    if done is not None:
        return done
    whole = seeds.load(seed=config.seed, test_fraction=config.test_fraction)
    taken = mine(config, whole)
    nothing = empty_part(config, len(whole), len(taken), work.emit)
    if nothing is not None:
        return nothing
    work.emit(Note(f"seed prompts: {len(taken)} from {seeds.named}; teacher: {frame.teacher.label}"))

    def through(chunk: Sequence[Seed], asker: Asker) -> list[Chain]:
        def ask(dialogues: Sequence[Dialogue], purpose: str, task: str) -> list[Answer | Failure]:
            return asker([(frame.teacher.provider, frame.ask(said, purpose)) for said in dialogues], task)

        return grow(chunk, config.rounds, ask)

    training = Training(
        "sft",
        rows=lambda seeds: seeds * (config.rounds + 1) * (1 - config.test_fraction),
        tokens=lambda estimate: sum(part.prompt.likely + part.reply.likely for part in estimate.parts[:1]),
    )
    return frame.carry_out(
        taken,
        draw=lambda sketch, rows: draw(sketch, rows, frame.teacher, config.rounds, frame.sampling()),
        through=through,
        make=lambda errand: _make(frame, errand, seeds, len(whole)),
        unit="seeds",
        training=training,
    )


def seeds_of(config: GenSftConfig, work: Work) -> Seeds:
    """The seed prompts asked for, else the sandbox's own for its teacher."""
    if config.prompts:
        source = open_mixture(
            work.store, config.prompts, "prompts", seed=config.seed, on_bad_row=config.on_bad_row
        )
        return from_source(source, config.rows)
    if parse_model(config.teacher).where == "sandbox":
        return from_sandbox(config.rows, config.seed)
    raise UsageError(
        f"gen-sft needs seed prompts for the teacher {config.teacher}",
        hint="--prompts FILE (JSONL rows with a `prompt`, or a .txt with one per line), --prompts REF, or -",
    )


def _make(frame: Frame, errand: Errand[Seed, list[Chain]], seeds: Seeds, whole: int) -> StepResult:
    """Writes the rows, chunk by chunk of chains, and commits them. `whole` = prompts of all shards."""
    config, step, work, teacher = frame.config, frame.step, frame.work, frame.teacher.label
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
        dropped = sieve.dropped()
        judge_outcome(
            config,
            work,
            tried=tried_of(sieve.kept, dropped),
            kept=sieve.kept,
            dropped=dropped,
            unit="pairs",
            more=f"; not reached: {sieve.not_reached()}",
        )
        staging.write_rejects([*seeds.rejects, *(reject.as_row() for reject in sieve.rejects)])
        staging.templates.update(frame.templates)
        staging.teachers.extend(caller.summary())
        staging.counts.update(sieve.counts(bad))
        artifact = staging.commit()
        tell_money(work.emit, staging.teachers, usable=sieve.kept, unit="pair")
        return step.result(artifact)
