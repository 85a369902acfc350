"""The method `ultrachat`: the teacher plays both the user and the assistant, on a list of topics."""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.artifacts.parts import part_file
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.calling import Asker, empty_part, shard_of
from zephyrctl.asking.ending import close_partial, tell_money
from zephyrctl.asking.errand import Errand, Training
from zephyrctl.events import Note, Warning_
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.base import Answer, Failure
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.frame import Frame, judge_outcome, open_frame, tried_of
from zephyrctl.stages.gen_sft.screen import Screen, open_screen
from zephyrctl.stages.gen_sft.ultrachat.calls import draw, tokens_each
from zephyrctl.stages.gen_sft.ultrachat.gathering import Gathering
from zephyrctl.stages.gen_sft.ultrachat.merge import as_entry
from zephyrctl.stages.gen_sft.ultrachat.plan import Slot, slots_of, topics_of
from zephyrctl.stages.gen_sft.ultrachat.requests import template_digests
from zephyrctl.stages.gen_sft.ultrachat.talking import NO_OPENING, NO_SUBTOPIC, Host, Request, Talk

ROWS = 1000
"""Dialogues, where nobody says how many."""
_SHORT_WARNING = 0.1


def run(config: GenSftConfig, work: Work) -> StepResult:
    """The artifact `sft-data`: dialogues of a simulated user with the teacher."""
    topics, source = topics_of(config.topics)
    world = "sandbox" if parse_model(config.teacher).where == "sandbox" else "real"
    screen = open_screen(config, work, world)
    inputs = [source, *screen.inputs()]
    frame = open_frame(config, work, inputs=inputs, world=world, templates=template_digests())
    done = frame.step.done()
    if done is not None:
        return done
    whole = slots_of(topics, config.rows or ROWS, config.seed)
    shard = shard_of(config)
    taken = whole if shard is None else [slot for slot in whole if shard.mine(slot.branch)]
    nothing = empty_part(config, len(whole), len(taken), work.emit)
    if nothing is not None:
        return nothing
    used = len({slot.topic for slot in taken})
    about = f"{used} of the {len(topics)} topics of {source.ref}"
    work.emit(Note(f"{len(taken)} dialogues on {about}; teacher: {frame.teacher.label}"))

    def through(chunk: Sequence[Slot], asker: Asker) -> list[Talk]:
        def ask(requests: Sequence[Request], purpose: str, task: str) -> list[Answer | Failure]:
            asks = [frame.ask(said, purpose, draw=number) for said, number in requests]
            return asker.ask(frame.teacher.provider, asks, task=task)

        return Host(ask, config.turns, config.seed).hold(chunk)

    return frame.carry_out(
        taken,
        draw=lambda sketch, slots: draw(sketch, slots, frame.teacher, config.turns, frame.sampling()),
        through=through,
        make=lambda errand: _make(frame, errand, screen, len(whole)),
        unit="dialogues",
        training=Training(
            "sft",
            rows=lambda dialogues: dialogues * (1 - config.test_fraction),
            tokens=lambda estimate: tokens_each(estimate, len(taken)),
        ),
    )


def _make(frame: Frame, errand: Errand[Slot, list[Talk]], screen: Screen, whole: int) -> StepResult:
    """Writes the rows, chunk by chunk of dialogues, and commits them. `whole` = dialogues of all parts."""
    config, step, work, teacher = frame.config, frame.step, frame.work, frame.teacher.label
    gathering = Gathering(teacher, test_fraction=config.test_fraction, screen=screen)
    taken = len(errand.rows)
    with step.open() as staging, errand.caller() as caller:
        with part_file(staging, config.shard, whole=whole, mine=taken, bad_rows=0, about=teacher) as notes:
            for _, talks in errand.results(caller):
                for talk in talks:
                    staging.write_rows(*gathering.take(talk))
                    if notes is not None:
                        notes.add(talk.slot.number, **as_entry(talk))
        _close(frame, staging, gathering)
        staging.write_rejects(gathering.reject_rows())
        staging.templates.update(frame.templates)
        staging.teachers.extend(caller.summary())
        staging.counts.update(gathering.counts())
        staging.extra["dialogues"] = gathering.tell(work.emit)
        screen.record(staging)
        artifact = staging.commit()
        tell_money(work.emit, staging.teachers, usable=gathering.kept, unit="dialogue")
        return step.result(artifact)


def _close(frame: Frame, staging: Staging, gathering: Gathering) -> None:
    """Says what came of it. Raises StageRejected for an outcome with too many failures, or without any dialogue."""
    of, kept, dropped = gathering.taken, gathering.kept, gathering.dropped()
    if frame.config.accept_partial:
        close_partial(
            staging, frame.work.emit, finished=gathering.finished, of=of, kept=kept, unit="dialogues"
        )
    judge_outcome(
        frame.config,
        frame.work,
        tried=tried_of(kept, dropped),
        kept=kept,
        dropped=dropped,
        unit="dialogues",
    )
    short = dropped[NO_SUBTOPIC] + dropped[NO_OPENING]
    if short > _SHORT_WARNING * of:
        frame.work.emit(
            Warning_(
                f"{short} of {of} dialogues have no opening message, because lists of the teacher were shorter than "
                "asked for or could not be read: the rejects tell which"
            )
        )
