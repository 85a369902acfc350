"""The method `self-instruct`: new tasks after the model of seed tasks, then their instances.

Islands, pools of tasks that know nothing of each other, grow side by side; a shard has some of them. What two islands
made alike is found at the end, in a fixed order, by one process or by the merge of the shards, with equal outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.artifacts.parts import part_file
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.asking.calling import Asker, shard_of
from zephyrctl.asking.ending import close_partial, tell_money
from zephyrctl.asking.errand import Errand, Training
from zephyrctl.config import digest_of
from zephyrctl.errors import UsageError
from zephyrctl.events import Emit, Note, Warning_
from zephyrctl.providers.base import Answer, Ask, Failure, Sampling
from zephyrctl.records import Message, prompt_id, row_seed
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.frame import Frame, judge_outcome, open_frame
from zephyrctl.stages.gen_sft.screen import Screen, open_screen
from zephyrctl.stages.gen_sft.self_instruct import islands as growth
from zephyrctl.stages.gen_sft.self_instruct import reading, requests
from zephyrctl.stages.gen_sft.self_instruct.calls import NEW_SHARE, draw
from zephyrctl.stages.gen_sft.self_instruct.harvest import Harvest, rows_of, target_of
from zephyrctl.stages.gen_sft.self_instruct.instances import INSTANCES, KIND, finish
from zephyrctl.stages.gen_sft.self_instruct.islands import TASKS, Island, Rules, grow, in_turn, sift
from zephyrctl.stages.gen_sft.self_instruct.merge import as_entry
from zephyrctl.stages.gen_sft.self_instruct.start import Start, start_of

_UNIT = "replies with tasks or instances"
_CUT_OFF_WARNING = 0.01
KIND_TOKENS = 16
"""The longest reply to a question of yes or no."""


def run(config: GenSftConfig, work: Work) -> StepResult:
    """The artifact `sft-data`: tasks made up by the teacher, each with its instances.

    Raises UsageError without `rows`, for a pilot, and for more shards than islands; and as `gen_sft.run`.
    """
    mine = _mine(config)
    start = start_of(config, work)
    screen = open_screen(config, work, start.seeds.world)
    templates = {**requests.template_digests(), "gen-sft/self-instruct/rules": digest_of(_rules())}
    inputs = [*start.inputs, *screen.inputs()]
    frame = open_frame(config, work, inputs=inputs, world=start.seeds.world, templates=templates)
    done = frame.step.done()
    if done is not None:
        return done
    seeds = start.load(config, screen)
    rules = Rules(seeds, target_of(config), config.novelty, config.seed)
    work.emit(
        Note(
            f"seed tasks: {len(seeds)} from {start.seeds.named}; teacher: {frame.teacher.label}; "
            f"an estimate takes {NEW_SHARE:.0%} of what it makes up to be usable and new"
        )
    )
    if config.mode == "batch":
        work.emit(
            Warning_("a wave of tasks can be asked only when the one before it is answered: each is a batch")
        )
    samplings = _samplings(frame)

    def through(chunk: Sequence[int], asker: Asker) -> list[Island]:
        def ask(texts: Sequence[str], purpose: str, task: str) -> list[Answer | Failure]:
            sampling = samplings[purpose]
            asks = [_ask(config, text, sampling, purpose) for text in texts]
            return asker([(frame.teacher.provider, one) for one in asks], task)

        grown = grow(chunk, rules, ask)
        # a shard does not know what the islands of the others make alike, so it finishes all of its own
        wanted = list(in_turn(grown)) if config.shard else sift(grown, config.novelty, rows_of(config))[0]
        finish(wanted, start.examples, config.instances, ask)
        return grown

    training = Training(
        "sft",
        rows=lambda islands: islands * rules.target * config.instances * (1 - config.test_fraction),
        tokens=lambda estimate: sum(p.reply.likely for p in estimate.parts if p.purpose == INSTANCES),
    )
    return frame.carry_out(
        mine,
        draw=lambda sketch, rows: draw(sketch, rows, rules, frame.teacher, samplings, start.examples),
        through=through,
        make=lambda errand: _make(frame, errand, start, screen, len(seeds)),
        unit="islands",
        training=training,
    )


def _mine(config: GenSftConfig) -> list[int]:
    """The islands that this process grows."""
    if config.rows is None:
        raise UsageError("how many tasks are to be made up is not said", hint="--rows 100")
    if config.pilot is not None:
        raise UsageError(
            "--pilot does not go with self-instruct: tasks grow from each other, so a few of them are no sample",
            hint="--rows 20 first; a larger --rows begins with the same tasks and pays for the rest only",
        )
    shard = shard_of(config)
    if shard is None:
        return list(range(config.islands))
    if shard.count > config.islands:
        raise UsageError(
            f"--shard {shard}: {config.islands} islands cannot be shared out among {shard.count} processes",
            hint=f"--set islands={shard.count}, or fewer shards",
        )
    return [island for island in range(config.islands) if island % shard.count == shard.index - 1]


def _rules() -> dict[str, object]:
    """The constants that decide what is made."""
    names = ("SHOWN", "SHOWN_MADE", "FIRST_WAVE", "LARGEST_WAVE", "STALLED_WAVES", "STALLED_SHARE")
    rules: dict[str, object] = {name: getattr(growth, name) for name in names}
    words = (reading.FEWEST_WORDS, reading.MOST_WORDS)
    return rules | {"WANTED": requests.WANTED, "words": words, "KIND_TOKENS": KIND_TOKENS}


def _samplings(frame: Frame) -> dict[str, Sampling]:
    """How replies are drawn: tasks as the settings say, kinds and instances at temperature 0, as in Self-Instruct's
    code. What is given with the teacher's name goes before.

    The original asked a base model for tasks with top_p 0.5 and a presence penalty of 2; neither suits models that
    follow instructions, so top_p is that of the settings and no penalty is sent."""
    config, teacher = frame.config, frame.teacher
    instances = teacher.sampling(temperature=0.0, max_tokens=config.max_tokens, seed=0)
    kind = teacher.sampling(temperature=0.0, max_tokens=KIND_TOKENS, seed=0)
    return {TASKS: frame.sampling(), KIND: kind, INSTANCES: instances}


def _ask(config: GenSftConfig, text: str, sampling: Sampling, purpose: str) -> Ask:
    """A request seeded by its own text."""
    said = (Message(role="user", content=text),)
    seeded = Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=row_seed(config.seed, prompt_id(said)),
    )
    return Ask(said, seeded, purpose=purpose)


def _make(
    frame: Frame, errand: Errand[int, list[Island]], start: Start, screen: Screen, seeds: int
) -> StepResult:
    """Carries the errand out, writes what came of it, and commits it."""
    config, step, work, teacher = frame.config, frame.step, frame.work, frame.teacher.label
    bad, mine = len(start.rejects), len(errand.rows)
    harvest = Harvest(config, teacher, screen)
    with step.open() as staging, errand.caller() as caller:
        with part_file(
            staging, config.shard, whole=config.islands, mine=mine, bad_rows=bad, about=teacher
        ) as notes:
            islands = [island for _, chunk in errand.results(caller) for island in chunk]
            for island in islands:
                if notes is not None:
                    notes.add(island.index, **as_entry(island, start.whole))
        staging.write_rejects(start.rejects)
        harvest.write(islands, staging)
        if config.accept_partial:
            of, unfinished = harvest.of, harvest.unfinished
            close_partial(
                staging, work.emit, finished=of - unfinished, of=of, kept=harvest.rows, unit="tasks"
            )
        failures = harvest.call_failures()
        answered = harvest.calls - failures.total()
        judge_outcome(config, work, tried=harvest.calls, kept=answered, dropped=failures, unit=_UNIT)
        _tell(work.emit, harvest, islands)
        screen.record(staging)
        staging.templates.update(frame.templates)
        staging.teachers.extend(caller.summary())
        staging.counts.update(harvest.counts(seeds, bad))
        artifact = staging.commit()
        tell_money(work.emit, staging.teachers, usable=harvest.rows, unit="row")
        return step.result(artifact)


def _tell(emit: Emit, harvest: Harvest, islands: Sequence[Island]) -> None:
    """Says what became of the tasks, and what stood in the way of more."""
    dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(harvest.dropped_tasks.items())) or "none"
    proposed, kept = harvest.tasks["proposed"], harvest.tasks["kept"]
    emit(Note(f"tasks: {proposed} made up, {kept} kept; dropped: {dropped}; rows: {harvest.rows}"))
    cut, asked = harvest.dropped_tasks["unfinished"], harvest.requests["answered"]
    if cut > _CUT_OFF_WARNING * asked:
        emit(
            Warning_(
                f"{cut} of {asked} lists of tasks were cut off and the last task of each was lost; "
                "--set max_tokens=… asks for longer ones"
            )
        )
    stalled = sum(island.ending == "stalled" for island in islands)
    if stalled:
        emit(
            Warning_(
                f"{stalled} of {len(islands)} islands stopped before they had as many tasks as were asked for: "
                f"{growth.STALLED_WAVES} waves in a row brought almost nothing new. More seeds (--prompts), a higher "
                "--set temperature= or a higher --set novelty= lets them go on"
            )
        )
    harvest.tell_alike(emit)
    unclear = harvest.kinds["unclear"]
    if 2 * unclear > harvest.kinds.total():
        emit(
            Warning_(
                f"whether a task is a classification task could not be told for {unclear} of {harvest.kinds.total()}; "
                "a model that reasons before it answers needs more room: --teacher 'NAME?max_tokens=1024'"
            )
        )
