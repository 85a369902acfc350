"""The method `zephyr`: respond to a seed, refine the instruction from the response, respond again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zephyrctl.artifacts.mixture import open_mixture
from zephyrctl.artifacts.parts import PartFile, part_file
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.calling import Asker, empty_part, mine
from zephyrctl.asking.ending import close_partial, tell_money
from zephyrctl.asking.errand import Errand, Training
from zephyrctl.asking.prompts import Seed, Seeds, from_sandbox, from_source
from zephyrctl.asking.seeds import from_package
from zephyrctl.events import Note, Warning_
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.base import Answer, Failure
from zephyrctl.stages.gen_sft.calls import draw
from zephyrctl.stages.gen_sft.chains import Chain, Dialogue, grow, template_digests
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.frame import Frame, judge_outcome, open_frame, tried_of
from zephyrctl.stages.gen_sft.rounds import tell_rounds
from zephyrctl.stages.gen_sft.screen import Screen, open_screen
from zephyrctl.stages.gen_sft.sieve import Sieve
from zephyrctl.stages.gen_sft.zephyr_merge import as_entry, of_seed


def run(config: GenSftConfig, work: Work) -> StepResult:
    """The artifact `sft-data`: the teacher's dialogues with seeds and with instructions refined from them."""
    seeds = seeds_of(config, work)
    screen = open_screen(config, work, seeds.world)
    inputs = [*seeds.inputs, *screen.inputs()]
    frame = open_frame(config, work, inputs=inputs, world=seeds.world, templates=template_digests())
    done = frame.step.done()
    if done is not None:
        return done
    whole = seeds.load(seed=config.seed, test_fraction=config.test_fraction)
    own = mine(config, whole)
    if config.rows is not None and len(whole) < config.rows:
        work.emit(Warning_(f"--rows {config.rows}: only {len(whole)} in {seeds.named}, and all are used"))
    nothing = empty_part(config, len(whole), len(own), work.emit)
    if nothing is not None:
        return nothing
    taken, turned_away = screen.seeds(own)
    work.emit(Note(f"seed prompts: {len(taken)} from {seeds.named}; teacher: {frame.teacher.label}"))
    found = _Found(seeds, screen, len(whole), own, turned_away)

    def through(chunk: Sequence[Seed], asker: Asker) -> list[Chain]:
        def ask(dialogues: Sequence[Dialogue], purpose: str, task: str) -> list[Answer | Failure]:
            return asker([(frame.teacher.provider, frame.ask(said, purpose)) for said in dialogues], task)

        return grow(chunk, config.rounds, ask, novelty=config.novelty)

    training = Training(
        "sft",
        rows=lambda seeds: seeds * (config.rounds + 1) * (1 - config.test_fraction),
        tokens=lambda estimate: sum(part.prompt.likely + part.reply.likely for part in estimate.parts[:1]),
    )
    return frame.carry_out(
        taken,
        draw=lambda sketch, rows: draw(sketch, rows, frame.teacher, config.rounds, frame.sampling()),
        through=through,
        make=lambda errand: _make(frame, errand, found),
        unit="seeds",
        training=training,
    )


@dataclass(frozen=True)
class _Found:
    """The seeds of a step: those of all its parts (`whole` of them), this part's (`mine`), and which of these overlap
    with a suite and are left out."""

    seeds: Seeds
    screen: Screen
    whole: int
    mine: Sequence[Seed]
    turned_away: Sequence[dict[str, str]]


def seeds_of(config: GenSftConfig, work: Work) -> Seeds:
    """The seed prompts asked for, else the sandbox's own for its teacher, else those that ship with the package.

    Raises RefNotFound, UsageError, IntegrityError.
    """
    if config.prompts:
        source = open_mixture(
            work.store,
            config.prompts,
            "prompts",
            seed=config.seed,
            on_bad_row=config.on_bad_row,
            emit=work.emit,
        )
        return from_source(source, config.rows)
    if parse_model(config.teacher).where == "sandbox":
        return from_sandbox(config.rows, config.seed)
    return from_package(config.rows)


def _make(frame: Frame, errand: Errand[Seed, list[Chain]], found: _Found) -> StepResult:
    """Writes the rows, chunk by chunk of chains, and commits them."""
    config, step, work, teacher = frame.config, frame.step, frame.work, frame.teacher.label
    bad = len(found.seeds.rejects)
    sieve = Sieve(config.rounds, teacher, novelty=config.novelty, screen=found.screen)
    sieve.turn_away(found.turned_away)
    with step.open() as staging, errand.caller() as caller:
        with part_file(
            staging, config.shard, whole=found.whole, mine=len(found.mine), bad_rows=bad, about=teacher
        ) as notes:
            note = None if notes is None else _Notes(notes, found.mine)
            for _, chains in errand.results(caller):
                for chain in chains:
                    staging.write_rows(chain.seed.split, sieve.rows(chain))
                    if note is not None:
                        note.add(chain)
            if note is not None:
                note.close()
        _close(frame, staging, sieve)
        staging.write_rejects([*found.seeds.rejects, *sieve.reject_rows()])
        staging.templates.update(frame.templates)
        staging.teachers.extend(caller.summary())
        staging.counts.update(sieve.counts(bad))
        finished = not sieve.unfinished
        staging.extra["rounds"] = tell_rounds(work.emit, sieve.tallies, finished=finished)
        found.screen.record(staging)
        artifact = staging.commit()
        tell_money(work.emit, staging.teachers, usable=sieve.kept, unit="pair")
        return step.result(artifact)


def _close(frame: Frame, staging: Staging, sieve: Sieve) -> None:
    """Says what came of it. Raises StageRejected for an outcome with too many failures, or without any pair."""
    if frame.config.accept_partial:
        of, unfinished = sieve.possible, sieve.unfinished
        close_partial(
            staging, frame.work.emit, finished=of - unfinished, of=of, kept=sieve.kept, unit="pairs"
        )
    dropped = sieve.dropped()
    judge_outcome(
        frame.config,
        frame.work,
        tried=tried_of(sieve.kept, dropped),
        kept=sieve.kept,
        dropped=dropped,
        unit="pairs",
        more=f"; not reached: {sieve.not_reached()}",
    )


class _Notes:
    """Notes of a part about each of its seeds, in their order: the chain of one that was asked, the seed alone of one
    that was turned away."""

    def __init__(self, file: PartFile, seeds: Sequence[Seed]) -> None:
        self._file = file
        self._seeds = iter(seeds)

    def add(self, chain: Chain) -> None:
        """Notes a chain, after the seeds before it that were turned away."""
        for seed in self._seeds:
            if seed.position == chain.seed.position:
                break
            self._file.add(seed.position, **of_seed(seed))
        self._file.add(chain.seed.position, **as_entry(chain))

    def close(self) -> None:
        """Notes what was turned away after the last chain."""
        for seed in self._seeds:
            self._file.add(seed.position, **of_seed(seed))
