"""Who takes part in a step: who answers, who rates, and the settings with all names filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.asking.seats import Seat, World, check_keys, joint_world, take_seat
from zephyrctl.config import digest_of
from zephyrctl.errors import UsageError
from zephyrctl.events import Note, Warning_
from zephyrctl.providers.base import AnyProvider
from zephyrctl.stages.gen_prefs.completing import Answering, Pool
from zephyrctl.stages.gen_prefs.config import LLM, GenPrefsConfig
from zephyrctl.stages.gen_prefs.existing import Existing
from zephyrctl.stages.gen_prefs.intake import Intake, open_given, open_intake
from zephyrctl.stages.gen_prefs.judging import JudgeRater, Judging
from zephyrctl.stages.gen_prefs.pooling import default_pool, take_seats
from zephyrctl.stages.gen_prefs.principles import ultrafeedback
from zephyrctl.stages.gen_prefs.rating import Answerer, Rater

if TYPE_CHECKING:
    from zephyrctl.artifacts.step import Work
    from zephyrctl.modelspec import ModelSpec
    from zephyrctl.providers.site import Site


@dataclass(frozen=True)
class Cast:
    """All who take part. `config` holds the pool as it was settled, so that another one is another step; `teacher` is
    None where no language model rates."""

    config: GenPrefsConfig
    teacher: Seat | None
    rater: Rater
    answerer: Answerer
    intake: Intake
    world: World

    def inputs(self) -> list[InputRef]:
        """What they are, for the step key."""
        templates = self.rater.templates()
        rubrics = InputRef(role="rubrics", ref="zephyrctl", digest=digest_of(templates), kind="rubrics")
        return [
            *self.intake.inputs,
            *self.rater.inputs(),
            *self.answerer.inputs(),
            *([rubrics] if templates else []),
        ]

    def providers(self) -> list[AnyProvider]:
        """Whom they ask, each once."""
        asked = [*self.rater.providers(), *self.answerer.providers()]
        return list({id(provider): provider for provider in asked}.values())

    def close(self) -> None:
        """Lets go of what they hold."""
        self.rater.close()
        self.answerer.close()


def open_cast(config: GenPrefsConfig, work: Work, site: Site) -> Cast:
    """Everybody, found and ready.

    Raises AuthError for a missing key before anything else, then UsageError for what is missing or cannot go together,
    RefNotFound, IntegrityError, MissingExtra.
    """
    judged = config.scorer == LLM
    if judged and config.teacher is None:
        raise UsageError(
            "gen-prefs needs a teacher to rate the completions",
            hint="--teacher MODEL; or --scorer rm:MODEL or --scorer ./file.py:fn",
        )
    asked = [config.teacher] if judged and config.teacher is not None else []
    specs = check_keys([*asked, *config.pool, *([config.second_judge] if config.second_judge else [])], site)
    if config.completions and config.pool:
        raise UsageError(
            "--completions rates what is there, so nobody is asked for more, and --pool has no place beside it",
            hint="leave one of them out (--set pool=[] for a pool that a file names)",
        )
    teacher = take_seat(work.store, specs[0], site) if judged else None
    if not judged:
        # a scorer says the same each time: the retest that editions ask for is nothing to it
        config = config.model_copy(update={"teacher": None, "retest": 0.0})
    rater = _rater(config, work, site, teacher)
    named = specs[len(asked) : len(asked) + len(config.pool)]
    if config.completions:
        given = open_given(config, work)
        world = joint_world([given.world, *_worlds(teacher, rater)])
        return Cast(config, teacher, rater, Existing(given), given, world)
    return _with_pool(config, work, site, teacher, rater, named)


def _with_pool(
    config: GenPrefsConfig,
    work: Work,
    site: Site,
    teacher: Seat | None,
    rater: Rater,
    named: Sequence[ModelSpec],
) -> Cast:
    names = list(config.pool)
    worlds = _worlds(teacher, rater)
    if not names:
        judge = teacher.spec if teacher is not None else None
        names, told = default_pool(
            work.store, site, judge=judge, world=joint_world(worlds), size=config.members
        )
        named = check_keys(names, site)
        if joint_world(worlds) != "sandbox":
            work.emit(Note(f"pool: {told}"))
    if min(config.members, len(names)) * config.n < 2:
        raise UsageError(
            "a pool of one model leaves nothing to compare",
            hint="give --pool at least twice, or let it answer more than once: --n 2",
        )
    # inputs are looked for in the order in which people name them: prompts before models
    intake = open_intake(config, work, teacher.world if teacher else joint_world(worlds))
    seats = take_seats(work.store, named, site)
    world = joint_world([intake.world, *worlds, *(seat.world for seat in seats)])
    pool = Pool(seats, answering(config))
    return Cast(config.model_copy(update={"pool": names}), teacher, rater, pool, intake, world)


def _rater(config: GenPrefsConfig, work: Work, site: Site, teacher: Seat | None) -> Rater:
    rater: Rater
    if teacher is not None:
        rater = JudgeRater(teacher, judging(config))
    else:
        from zephyrctl.stages.gen_prefs.scorers import open_scorer

        rater = open_scorer(config.scorer, work)
    if config.second_judge is None and not config.retest:
        if config.when != GenPrefsConfig.model_fields["when"].default:
            work.emit(Warning_(f"--when '{config.when}' is not used: there is no --second-judge"))
        return rater
    from zephyrctl.stages.gen_prefs.second import open_second

    return open_second(rater, config, work, site)


def _worlds(teacher: Seat | None, rater: Rater) -> list[str]:
    return [rater.world, *([teacher.world] if teacher is not None else [])]


def answering(config: GenPrefsConfig) -> Answering:
    """What of the settings decides the completions."""
    return Answering(
        seed=config.seed,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        members=config.members,
        n=config.n,
        principles=ultrafeedback() if config.principles == "ultrafeedback" else None,
    )


def judging(config: GenPrefsConfig) -> Judging:
    """What of the settings decides the judge's requests."""
    return Judging(
        seed=config.seed,
        aspects=tuple(config.aspects) if config.judge_mode != "overall" else (),
        overall=config.judge_mode != "aspects",
        judge_temperature=config.judge_temperature,
        judge_max_tokens=config.judge_max_tokens,
        repair=config.repair,
    )
